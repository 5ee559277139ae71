// SPDX-License-Identifier: Apache-2.0

// Package examples holds one example for every schema: what a run of a small
// program puts into the log and the store. The examples are the same at every
// call and belong together: the same analysis, the same digests.
package examples

import (
	"fmt"
	"strconv"
	"time"

	"github.com/petri-sandbox/petri/schemas"
)

const (
	tenant   = schemas.DefaultTenant
	analysis = "01M7WWPJGHX01836292GCV681K"
	worker   = "01M7WWPJKMTVCE8KMQ1MMJ6ACV"
	kernel   = "6.1.0-56-amd64"
	qemu     = "7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3)"
	mac      = "00:e0:4c:c4:12:a6"
	address  = "10.0.2.15"
	path     = "/root/hello"
	pid      = 1767
)

// start is when the sample was submitted.
var start = time.Date(2026, 11, 20, 16, 30, 11, 985147949, time.UTC)

// at is a time of the run, so many milliseconds after the submission.
func at(ms int) time.Time { return start.Add(time.Duration(ms) * time.Millisecond) }

func ms(n int) schemas.Duration { return schemas.Duration(time.Duration(n) * time.Millisecond) }

// Digests of what the run is about. The bytes themselves are made up.
var (
	sampleDigest   = schemas.Sum([]byte("hello"))
	stdoutDigest   = schemas.Sum([]byte(stdout))
	traceDigest    = schemas.Sum([]byte("trace manifest"))
	pcapDigest     = schemas.Sum([]byte("pcap manifest"))
	templateDigest = schemas.Sum([]byte("template"))
	droppedDigest  = schemas.Sum([]byte("dropped"))
	resultDigest   = schemas.Sum([]byte("result"))
	rulesDigest    = schemas.Sum([]byte("rules"))
	configDigest   = schemas.Sum([]byte("config"))
	segmentDigests = []schemas.Digest{schemas.Sum([]byte("segment 0")), schemas.Sum([]byte("segment 1"))}
)

const stdout = "hello from the guest\n"

func ptr[T any](v T) *T { return &v }

// fact is the data of an example event and what its envelope says.
type fact struct {
	data   schemas.Typed
	id     string // below the analysis
	at     time.Time
	origin schemas.Origin
	tenant string // if it belongs to no analysis
}

// Of returns the example of a schema: a whole [schemas.Event] for the types of
// events, the document itself for the rest.
func Of(t schemas.TypeInfo) (any, error) {
	switch t.Form {
	case schemas.FormDocument:
		if doc, ok := documents()[t.Name]; ok {
			return doc, nil
		}
	case schemas.FormEnvelope:
		return event(contextFacts()[0])
	default:
		for _, facts := range [][]fact{contextFacts(), otherFacts(), behaviorFacts()} {
			for _, f := range facts {
				if f.data.EventType() == t.Name {
					return event(f)
				}
			}
		}
	}
	return nil, fmt.Errorf("there is no example of %s: write one in cmd/internal/schemagen/examples", t.Name)
}

func event(f fact) (schemas.Event, error) {
	if f.tenant != "" {
		return schemas.NewEvent(f.tenant, "", f.id, f.at, f.origin, f.data)
	}
	return schemas.NewEvent(tenant, analysis, analysis+"/"+f.id, f.at, f.origin, f.data)
}

// contextID is the id of the context event with that number.
func contextID(n int) string { return "context/" + strconv.Itoa(n) }
