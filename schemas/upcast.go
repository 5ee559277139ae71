// SPDX-License-Identifier: Apache-2.0

package schemas

import (
	"encoding/json"
	"fmt"
	"time"
)

// A log is kept for years, and what an event means may have to change: then its
// type gets a new version, and an upcaster reads the old one as the new one. The
// log itself is never rewritten. Each upcaster makes one step; [Event.Decode]
// goes as many as it needs.

// upcaster turns an event of one version into the data of the next.
type upcaster struct {
	to string // type of the next version
	up func(e Event) (Typed, error)
}

// upcasters by the type that they read.
func upcasters(typ string) (upcaster, bool) {
	switch typ {
	case WaitAnalysisV1{}.EventType():
		return upcaster{WaitAnalysis{}.EventType(), upcastWaitAnalysis}, true
	}
	return upcaster{}, false
}

// maxUpcasts is more than any type has versions.
const maxUpcasts = 16

// Upcast returns the event as its type's newest version has it. What the
// envelope says besides the type stays as it is.
func Upcast(e Event) (Event, error) {
	for range maxUpcasts {
		u, ok := upcasters(e.Type)
		if !ok {
			return e, nil
		}
		next, err := u.up(e)
		if err != nil {
			return e, fmt.Errorf("read %s as %s: %w", e.Type, u.to, err)
		}
		if e.Data, err = json.Marshal(next); err != nil {
			return e, fmt.Errorf("read %s as %s: %w", e.Type, u.to, err)
		}
		e.Type, e.DataSchema = u.to, SchemaURI(u.to)
	}
	return e, fmt.Errorf("%s has more than %d versions", e.Type, maxUpcasts)
}

// WaitAnalysisV1 is what [WaitAnalysis] was: its deadline is a time of day, and
// means another span once the host's clock has been set.
type WaitAnalysisV1 struct {
	Deadline time.Time `json:"deadline"`
	Expected []string  `json:"expected"`
}

// EventType implements [Typed].
func (WaitAnalysisV1) EventType() string { return ContextType(EventWaitAnalysis) }

func upcastWaitAnalysis(e Event) (Typed, error) {
	var old WaitAnalysisV1
	if err := json.Unmarshal(e.Data, &old); err != nil {
		return nil, err
	}
	return WaitAnalysis{Timeout: Duration(max(0, old.Deadline.Sub(e.Time))), Expected: old.Expected}, nil
}
