// SPDX-License-Identifier: Apache-2.0

package schemas

import (
	"bytes"
	"encoding/json"
)

// scanEvent reads an event that is written as Petri itself writes it: all
// members, in order, of plain characters. It is what nearly every event of the
// log is, and costs a third of reading just any JSON. ok is false for anything
// else, which may be right all the same.
func scanEvent(b []byte) (e Event, ok bool) {
	s := scanner{rest: b, ok: true}
	e.SpecVersion = s.member(`{"specversion":"`)
	e.ID = s.member(`,"id":"`)
	e.Source = s.member(`,"source":"`)
	e.Type = s.member(`,"type":"`)
	at := s.member(`,"time":"`)
	e.DataContentType = s.member(`,"datacontenttype":"`)
	e.DataSchema = s.member(`,"dataschema":"`)
	e.Tenant = s.member(`,"tenant":"`)
	if bytes.HasPrefix(s.rest, []byte(`,"analysis":"`)) {
		e.Analysis = s.member(`,"analysis":"`)
	}
	e.Origin = Origin(s.member(`,"origin":"`))
	data, found := bytes.CutPrefix(s.rest, []byte(`,"data":`))
	data, closed := bytes.CutSuffix(data, []byte(`}`))
	if !s.ok || !found || !closed || len(data) == 0 || !tight(data) || !json.Valid(data) {
		return Event{}, false
	}
	if e.Time.UnmarshalText([]byte(at)) != nil {
		return Event{}, false
	}
	e.Data = bytes.Clone(data)
	return e, true
}

// tight reports whether a value begins and ends without white space, as one
// that was cut out by a parser does.
func tight(b []byte) bool { return b[0] > ' ' && b[len(b)-1] > ' ' }

type scanner struct {
	rest []byte
	ok   bool
}

// member reads a string whose beginning, up to its first quote, is prefix.
func (s *scanner) member(prefix string) string {
	rest, found := bytes.CutPrefix(s.rest, []byte(prefix))
	if !s.ok || !found {
		s.ok = false
		return ""
	}
	for i, c := range rest {
		switch {
		case c == '"':
			s.rest = rest[i+1:]
			return string(rest[:i])
		case c < ' ' || c > '~' || c == '\\':
			s.ok = false
			return ""
		}
	}
	s.ok = false
	return ""
}
