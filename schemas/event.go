// SPDX-License-Identifier: Apache-2.0

package schemas

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"
)

// SpecVersion is the CloudEvents version of every event.
const SpecVersion = "1.0"

// Origin says who saw a fact.
type Origin string

const (
	// OriginHost facts were seen by Petri outside of the guest.
	OriginHost Origin = "host"
	// OriginGuest facts are a guest's testimony: a sample that owns its kernel
	// can have made them up.
	OriginGuest Origin = "guest"
)

// An Event is one immutable fact: a CloudEvents 1.0 envelope in the structured
// JSON format, with the extension attributes tenant, analysis and origin.
// https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/formats/json-format.md
type Event struct {
	SpecVersion     string    `json:"specversion"`
	ID              string    `json:"id"`     // unique within Source, the same for every redelivery
	Source          string    `json:"source"` // /petri/<tenant>/<analysis>
	Type            string    `json:"type"`   // petri.<family>.<name>.v<N>
	Time            time.Time `json:"time"`   // of the fact, by its origin's clock, UTC
	DataContentType string    `json:"datacontenttype"`
	DataSchema      string    `json:"dataschema"`

	Tenant   string `json:"tenant"`
	Analysis string `json:"analysis,omitempty"`
	Origin   Origin `json:"origin"`

	Data json.RawMessage `json:"data"`
}

// A Typed value knows the type of the event that carries it.
type Typed interface {
	// EventType is the event's type, such as petri.context.pre_poweron.v1.
	EventType() string
}

// NewEvent wraps data. id is unique within the analysis; see [Event].
func NewEvent(tenant, analysis, id string, at time.Time, origin Origin, data Typed) (Event, error) {
	b, err := json.Marshal(data)
	if err != nil {
		return Event{}, fmt.Errorf("encode %s: %w", data.EventType(), err)
	}
	source := "/petri/" + tenant
	if analysis != "" {
		source += "/" + analysis
	}
	return Event{
		SpecVersion: SpecVersion, ID: id, Source: source, Type: data.EventType(),
		Time: at.UTC(), DataContentType: "application/json", DataSchema: SchemaURI(data.EventType()),
		Tenant: tenant, Analysis: analysis, Origin: origin, Data: b,
	}, nil
}

// SchemaURI is the dataschema attribute of a type's events. The schema itself
// is the file of the same name in schemas/json.
func SchemaURI(typ string) string { return "urn:petri:schema:" + typ }

// ParseEvent reads a structured CloudEvent and checks the envelope. What Data
// holds is not checked.
func ParseEvent(b []byte) (Event, error) {
	e, ok := scanEvent(b)
	if !ok {
		e = Event{}
		if err := json.Unmarshal(b, &e); err != nil {
			return Event{}, fmt.Errorf("parse event: %w", err)
		}
	}
	switch {
	case e.SpecVersion != SpecVersion:
		return Event{}, fmt.Errorf("parse event: specversion %q is not %q", e.SpecVersion, SpecVersion)
	case e.ID == "" || e.Source == "":
		return Event{}, fmt.Errorf("parse event: id or source is missing")
	case !strings.HasPrefix(e.Type, "petri."):
		return Event{}, fmt.Errorf("parse event: type %q does not begin with \"petri.\"", e.Type)
	case e.Time.IsZero():
		return Event{}, fmt.Errorf("parse event: time is missing")
	case e.Origin != OriginHost && e.Origin != OriginGuest:
		return Event{}, fmt.Errorf("parse event: origin %q is neither host nor guest", e.Origin)
	}
	return e, nil
}

// Name is the type's word before its version: pre_poweron of
// petri.context.pre_poweron.v1.
func (e Event) Name() string {
	parts := strings.Split(e.Type, ".")
	if len(parts) < 3 {
		return ""
	}
	return parts[len(parts)-2]
}

// Family is the type's second word: context, artifact, finding, …
func (e Event) Family() string {
	parts := strings.Split(e.Type, ".")
	if len(parts) < 3 {
		return ""
	}
	return parts[1]
}

// Decode unpacks the event's data, which must be of into's type, or of an older
// version of it. Fields that a newer Petri added are ignored.
func (e Event) Decode(into Typed) error {
	if want := into.EventType(); want != "" && e.Type != want {
		up, err := Upcast(e)
		if err != nil {
			return fmt.Errorf("decode event %s: %w", e.ID, err)
		}
		if up.Type == want {
			e = up
		}
	}
	if want := into.EventType(); want != "" && e.Type != want {
		return fmt.Errorf("decode event %s: it is a %s, not a %s", e.ID, e.Type, want)
	}
	if err := json.Unmarshal(e.Data, into); err != nil {
		return fmt.Errorf("decode event %s: %w", e.ID, err)
	}
	return nil
}
