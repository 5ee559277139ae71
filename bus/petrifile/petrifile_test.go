// SPDX-License-Identifier: Apache-2.0

package petrifile_test

import (
	"bytes"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/petri-sandbox/petri/bus/petrifile"
	"github.com/petri-sandbox/petri/schemas"
)

const id = "01JDMZ8Q4T9RB3X1V5W7Y2K6HN"

var at = time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)

// testKey is a signing key of the test's own.
func testKey(seed byte) ed25519.PrivateKey {
	return ed25519.NewKeyFromSeed(bytes.Repeat([]byte{seed}, ed25519.SeedSize))
}

// story is the log of a small analysis and the bytes that it names.
type story struct {
	t       testing.TB
	entries []petrifile.Entry
	objects map[schemas.Digest][]byte
	tree    petrifile.Tree
	context int
}

func (s *story) add(subject, eventID string, data schemas.Typed) {
	s.t.Helper()
	e, err := schemas.NewEvent("default", id, eventID, at.Add(time.Duration(len(s.entries))*time.Second), schemas.OriginHost, data)
	if err != nil {
		s.t.Fatal(err)
	}
	body, err := json.Marshal(e)
	if err != nil {
		s.t.Fatal(err)
	}
	s.entries = append(s.entries, petrifile.Entry{Seq: uint64(100 + 3*len(s.entries)), Subject: "petri.default." + id + "." + subject, Body: body})
	s.tree.Append(petrifile.LeafHash(body))
}

func (s *story) event(data schemas.Typed) {
	s.t.Helper()
	name := strings.Split(data.EventType(), ".")[2]
	s.add("context."+name, id+"/context/"+strconv.Itoa(s.context), data)
	s.context++
}

func (s *story) object(b []byte) (schemas.Digest, int64) {
	d := schemas.Sum(b)
	s.objects[d] = b
	return d, int64(len(b))
}

func (s *story) artifact(kind schemas.Kind, b []byte) schemas.Digest {
	s.t.Helper()
	d, n := s.object(b)
	a := schemas.Artifact{Kind: kind, SHA256: d, Size: n}
	s.add("artifact."+string(kind)+"."+d.Token()+".0", a.ID(id), a)
	return d
}

func (s *story) checkpoint(name string, key ed25519.PrivateKey) {
	s.t.Helper()
	c := petrifile.Sign(key, "default", id, name, s.tree.Size(), s.tree.Root())
	s.add("checkpoint."+strconv.FormatUint(c.Events, 10), id+"/checkpoint/"+strconv.FormatUint(c.Events, 10), c)
}

// tell makes a whole analysis.
func tell(t testing.TB) *story {
	t.Helper()
	s := &story{t: t, objects: map[schemas.Digest][]byte{}}
	s.event(schemas.AnalysisSubmitted{Submission: schemas.Submission{ID: id, Tenant: "default"}, Attempt: 1})
	sample := s.artifact(schemas.KindSample, []byte("#!/bin/sh\necho hello\n"))
	big, n := s.object(bytes.Repeat([]byte("frames of the network; "), 100_000))
	s.add("segment.pcap.0", id+"/segment/pcap/0", schemas.Segment{Source: schemas.SourcePcap, SHA256: big, Size: n})
	s.add("segment.stdout.0", id+"/segment/stdout/0", schemas.Segment{Source: schemas.SourceStdout, SHA256: schemas.Sum([]byte("hi")), Size: 2, Data: []byte("hi")})
	s.artifact(schemas.KindDropped, nil)
	s.artifact(schemas.KindMemory, bytes.Repeat([]byte{1, 2, 3}, 700_000))
	s.event(schemas.StartAnalysis{})
	s.checkpoint(schemas.EventStartAnalysis, testKey(1))
	task := schemas.TaskRef{Tenant: "default", Analysis: id, Run: schemas.LiveRun, Analyzer: "static", SHA256: &sample, Kind: schemas.KindSample}
	s.add("finding.low.static."+sample.Token()+".0", id+"/finding/live/static/"+sample.Token()+"/0",
		schemas.FindingCommitted{Task: task, Version: "1.0.0", Finding: schemas.Finding{Kind: "script", Title: "a script", Severity: schemas.SeverityLow}})
	result, rn := s.object([]byte(`{"schema":"petri.result.static.v1"}`))
	s.add("receipt.live.static."+sample.Token(), id+"/receipt/live/static/"+sample.Token(),
		schemas.Receipt{Task: task, Version: "1.0.0", Status: schemas.TaskDone, Findings: 1, Result: &schemas.ResultRef{Schema: "petri.result.static.v1", SHA256: result, Size: rn}})
	s.event(schemas.AnalysisCompleted{})
	s.checkpoint(schemas.EventCompleted, testKey(1))
	s.add("report.json", id+"/report/json/x", schemas.ReportWritten{Format: "json", SHA256: schemas.Sum([]byte("report")), Size: 6})
	return s
}

// file writes a story down.
func (s *story) file(h petrifile.Header, without ...schemas.Kind) []byte {
	s.t.Helper()
	var buf bytes.Buffer
	w, err := petrifile.NewWriter(&buf, h)
	if err != nil {
		s.t.Fatal(err)
	}
	for _, e := range s.entries {
		if _, err := w.Event(e); err != nil {
			s.t.Fatal(err)
		}
	}
	for !h.Thin {
		o, ok := w.Due()
		if !ok {
			break
		}
		if o.Is(without) {
			err = w.Absent(petrifile.AbsentLeftOut)
		} else {
			err = w.Object(bytes.NewReader(s.objects[o.SHA256]))
		}
		if err != nil {
			s.t.Fatal(err)
		}
	}
	if _, err := w.Close(); err != nil {
		s.t.Fatal(err)
	}
	return buf.Bytes()
}

var header = petrifile.Header{Tenant: "default", Analysis: id}

// contents is what a file gave.
type contents struct {
	Header  petrifile.Header
	Entries []petrifile.Entry
	Objects []petrifile.Object
	Bytes   map[schemas.Digest]string
	Absent  map[schemas.Digest]string
	Trailer petrifile.Trailer
}

func read(b []byte) (*contents, error) {
	r, err := petrifile.NewReader(bytes.NewReader(b), "")
	if err != nil {
		return nil, err
	}
	defer r.Close()
	c := &contents{Header: r.Header(), Bytes: map[schemas.Digest]string{}, Absent: map[schemas.Digest]string{}}
	for {
		item, err := r.Next()
		if errors.Is(err, io.EOF) {
			c.Trailer = r.Trailer()
			return c, nil
		}
		if err != nil {
			return c, err
		}
		switch {
		case item.Entry != nil:
			e := *item.Entry
			e.Body = bytes.Clone(e.Body)
			c.Entries = append(c.Entries, e)
		case item.Absent != "":
			c.Objects = append(c.Objects, *item.Object)
			c.Absent[item.Object.SHA256] = item.Absent
		default:
			got, err := io.ReadAll(r)
			if err != nil {
				return c, err
			}
			c.Objects = append(c.Objects, *item.Object)
			c.Bytes[item.Object.SHA256] = string(got)
		}
	}
}

// write makes a file of what one gave.
func (c *contents) write() ([]byte, error) {
	var buf bytes.Buffer
	w, err := petrifile.NewWriter(&buf, c.Header)
	if err != nil {
		return nil, err
	}
	for _, e := range c.Entries {
		if _, err := w.Event(e); err != nil {
			return nil, err
		}
	}
	for o, ok := w.Due(); ok; o, ok = w.Due() {
		if why := c.Absent[o.SHA256]; why != "" {
			err = w.Absent(why)
		} else {
			err = w.Object(strings.NewReader(c.Bytes[o.SHA256]))
		}
		if err != nil {
			return nil, err
		}
	}
	_, err = w.Close()
	return buf.Bytes(), err
}

func TestRoundTrip(t *testing.T) {
	s := tell(t)
	for _, tt := range []struct {
		name    string
		header  petrifile.Header
		without []schemas.Kind
		absent  int
	}{
		{"whole", header, nil, 0},
		{"without_memory_and_pcap", header, []schemas.Kind{schemas.KindMemory, schemas.KindPcap}, 2},
		{"thin", petrifile.Header{Tenant: "default", Analysis: id, Thin: true}, nil, 5},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := s.file(tt.header, tt.without...)
			c, err := read(b)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(s.entries, c.Entries); diff != "" {
				t.Error("the events changed:", diff)
			}
			if len(c.Absent) != tt.absent || c.Trailer.Absent != tt.absent || len(c.Bytes) != 5-tt.absent {
				t.Errorf("%d objects and %d absent ones; %d are absent", len(c.Bytes), len(c.Absent), tt.absent)
			}
			for d, text := range c.Bytes {
				if text != string(s.objects[d]) {
					t.Errorf("object %s changed", d)
				}
			}
			again, err := c.write()
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(again, b) {
				t.Error("written again it is another file")
			}
		})
	}
}

// TestDamage cuts a file at every place that matters and changes every byte of
// a thin one: nothing of it may pass for whole.
func TestDamage(t *testing.T) {
	s := tell(t)
	b := s.file(petrifile.Header{Tenant: "default", Analysis: id, Thin: true})
	for n := range b {
		if _, err := read(b[:n]); err == nil {
			t.Fatalf("cut to %d of %d bytes it passes for whole", n, len(b))
		}
		changed := bytes.Clone(b)
		changed[n] ^= 0x21
		if _, err := read(changed); err == nil {
			t.Fatalf("with byte %d changed it passes for whole", n)
		}
	}
	if _, err := read(append(bytes.Clone(b), 0)); err == nil {
		t.Error("with a byte behind its end it passes for whole")
	}
	full := s.file(header)
	for n := 1; n < len(full); n += 997 {
		if _, err := read(full[:len(full)-n]); err == nil {
			t.Fatalf("cut by %d bytes it passes for whole", n)
		}
	}
}

const rerun = "r-01M7WZ5Q0E8T1V4RZ9C3K6XNBA"

// derivation adds what a run has derived.
func (s *story) derivation(run string) {
	d := schemas.Derivation{
		Task:     schemas.TaskRef{Tenant: "default", Analysis: id, Run: run, Analyzer: "archive"},
		Artifact: schemas.Artifact{Kind: schemas.KindExtracted, SHA256: schemas.Sum([]byte("inner")), Size: 5},
	}
	s.add("derivation."+run+".extracted."+d.Artifact.SHA256.Token()+".0", d.ID(), d)
}

// TestDerivation names the bytes that a run has derived among the log's objects.
func TestDerivation(t *testing.T) {
	s := tell(t)
	s.derivation(rerun)
	log, err := petrifile.NewLog("default", id, "")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range s.entries {
		if _, err := log.Add(e); err != nil {
			t.Fatal(err)
		}
	}
	list := log.Objects()
	if o := list[len(list)-1]; o.SHA256 != schemas.Sum([]byte("inner")) || o.Size != 5 || !o.Is([]schemas.Kind{schemas.KindExtracted}) {
		t.Errorf("the last object is %+v", o)
	}
}

// TestRefused gives a log what does not belong there.
func TestRefused(t *testing.T) {
	event := func(s *story, i int, change func(e *schemas.Event)) {
		var e schemas.Event
		if err := json.Unmarshal(s.entries[i].Body, &e); err != nil {
			t.Fatal(err)
		}
		change(&e)
		s.entries[i].Body, _ = json.Marshal(e)
	}
	subject := func(s *story, i int, old, new string) {
		s.entries[i].Subject = strings.Replace(s.entries[i].Subject, old, new, 1)
	}
	for _, tt := range []struct {
		name string
		do   func(s *story)
		want string
	}{
		{"twice_artifact", func(s *story) { s.entries = append(s.entries, s.entries[1]) }, "there twice"},
		{"twice_segment", func(s *story) { s.entries = append(s.entries, s.entries[2]) }, "there twice"},
		{"twice_receipt", func(s *story) { s.entries = append(s.entries, s.entries[9]) }, "there twice"},
		{"twice_finding", func(s *story) { s.entries = append(s.entries, s.entries[8]) }, "there twice"},
		{"twice_context", func(s *story) { s.entries = append(s.entries, s.entries[6]) }, "missing or comes twice"},
		{"missing_context", func(s *story) { s.entries = append(s.entries[:6], s.entries[7:]...) }, "missing or comes twice"},
		{"missing_first", func(s *story) { s.entries = s.entries[1:] }, "analysis_submitted"},
		{"two_ends", func(s *story) { s.event(schemas.AnalysisFailed{Reason: "machine"}) }, "ended before"},
		{"foreign_analysis", func(s *story) {
			event(s, 1, func(e *schemas.Event) { e.Analysis = "01JDMZ8Q4T9RB3X1V5W7Y2K6HM" })
		}, "it is analysis"},
		{"foreign_tenant", func(s *story) { event(s, 1, func(e *schemas.Event) { e.Tenant = "other" }) }, "of tenant"},
		{"foreign_subject", func(s *story) { subject(s, 1, "petri.default", "petri.other") }, "is not the analysis'"},
		{"registry_subject", func(s *story) { s.entries[1].Subject = "petri._registry.static" }, "is not the analysis'"},
		{"wildcard", func(s *story) { subject(s, 1, "artifact.sample", "artifact.*") }, "another event's subject"},
		{"other_severity", func(s *story) { subject(s, 8, "finding.low", "finding.critical") }, "another event's subject"},
		{"wrong_kind", func(s *story) {
			event(s, 1, func(e *schemas.Event) {
				e.Data = bytes.Replace(e.Data, []byte(`"sample"`), []byte(`"../etc"`), 1)
			})
		}, "must begin with a-z"},
		{"foreign_task", func(s *story) {
			event(s, 9, func(e *schemas.Event) {
				e.Data = bytes.Replace(e.Data, []byte(id), []byte("01JDMZ8Q4T9RB3X1V5W7Y2K6HM"), 1)
			})
		}, "its task is"},
		{"other_size", func(s *story) {
			d := schemas.Sum([]byte("#!/bin/sh\necho hello\n"))
			a := schemas.Artifact{Kind: schemas.KindDropped, SHA256: d, Size: 7}
			s.add("artifact.dropped."+d.Token()+".0", a.ID(id), a)
		}, "bytes here and"},
		{"huge", func(s *story) {
			d := schemas.Sum([]byte("x"))
			a := schemas.Artifact{Kind: schemas.KindDropped, SHA256: d, Size: 1 << 50}
			s.add("artifact.dropped."+d.Token()+".0", a.ID(id), a)
		}, "are allowed"},
		{"derivation_twice", func(s *story) { s.derivation(rerun); s.entries = append(s.entries, s.entries[len(s.entries)-1]) }, "there twice"},
		{"derivation_live", func(s *story) { s.derivation(schemas.LiveRun) }, "is announced"},
		{"derivation_of_another_run", func(s *story) {
			s.derivation(rerun)
			subject(s, len(s.entries)-1, rerun, "r-01JDMZ8Q4T9RB3X1V5W7Y2K6HM")
		}, "another event's subject"},
		{"derivation_in_another", func(s *story) {
			s.derivation(rerun)
			event(s, len(s.entries)-1, func(e *schemas.Event) {
				e.Data = bytes.Replace(e.Data, []byte(id), []byte("01JDMZ8Q4T9RB3X1V5W7Y2K6HM"), 1)
			})
		}, "its task is"},
		{"no_event", func(s *story) { s.entries[3].Body = []byte(`{}`) }, "parse event"},
		{"long", func(s *story) { s.entries[3].Body = bytes.Repeat([]byte(" "), petrifile.MaxEvent+1) }, "are allowed"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := tell(t)
			tt.do(s)
			log, err := petrifile.NewLog("default", id, "")
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range s.entries {
				if _, err = log.Add(e); err != nil {
					break
				}
			}
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("the error is %v, and does not say %q", err, tt.want)
			}
		})
	}
}

// TestObjects gives a file other bytes than its log names.
func TestObjects(t *testing.T) {
	s := tell(t)
	for name, b := range map[string][]byte{"other": []byte("#!/bin/sh\necho hellO\n"), "short": []byte("#!"), "long": bytes.Repeat([]byte("x"), 3<<20)} {
		t.Run(name, func(t *testing.T) {
			w, err := petrifile.NewWriter(io.Discard, header)
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range s.entries {
				if _, err := w.Event(e); err != nil {
					t.Fatal(err)
				}
			}
			if err := w.Object(bytes.NewReader(b)); err == nil {
				t.Error("the writer took them")
			}
		})
	}
}

// TestUnfinished wants an ending.
func TestUnfinished(t *testing.T) {
	w, err := petrifile.NewWriter(io.Discard, petrifile.Header{Tenant: "default", Analysis: id, Thin: true})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Event(tell(t).entries[0]); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Close(); !errors.Is(err, petrifile.ErrUnfinished) {
		t.Errorf("the error is %v", err)
	}
}

func TestCoverage(t *testing.T) {
	cover := func(s *story, key string) petrifile.Coverage {
		t.Helper()
		log, err := petrifile.NewLog("default", id, key)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range s.entries {
			if _, err := log.Add(e); err != nil {
				t.Fatal(err)
			}
		}
		return log.Coverage()
	}
	s := tell(t)
	c := cover(s, "")
	want := map[string]uint64{"petri.checkpoint.signed.v1": 1, "petri.report.written.v1": 1}
	if c.Events != 13 || c.Covered != 11 || cmp.Diff(want, c.Uncovered) != "" || len(c.Checkpoints) != 2 {
		t.Errorf("coverage %+v", c)
	}
	for _, p := range c.Checkpoints {
		if p.Problem != "" {
			t.Errorf("checkpoint at %s: %s", p.At, p.Problem)
		}
	}
	if c := cover(s, fmt.Sprintf("%x", testKey(2).Public())); c.Covered != 0 || c.Checkpoints[0].Problem != "" {
		t.Errorf("another key covers %d events", c.Covered)
	}

	// An event that somebody changed after it was signed.
	s = tell(t)
	s.entries[3].Body = bytes.Replace(s.entries[3].Body, []byte(`"time":"2026`), []byte(`"time":"2025`), 1)
	c = cover(s, "")
	if c.Covered != 0 || !strings.Contains(c.Checkpoints[0].Problem, "not those that were signed") {
		t.Errorf("coverage of a changed log: %+v", c)
	}
	// One behind the first checkpoint leaves that one its due.
	s = tell(t)
	s.entries[9].Body = bytes.Replace(s.entries[9].Body, []byte(`"time":"2026`), []byte(`"time":"2025`), 1)
	if c = cover(s, ""); c.Covered != 7 || c.Checkpoints[1].Problem == "" {
		t.Errorf("coverage of a log that was changed behind a checkpoint: %+v", c)
	}
	// A checkpoint with somebody else's key in it.
	s = tell(t)
	s.entries[7].Body = bytes.Replace(s.entries[7].Body, fmt.Appendf(nil, "%x", testKey(1).Public()), fmt.Appendf(nil, "%x", testKey(2).Public()), 1)
	if c = cover(s, ""); !strings.Contains(c.Checkpoints[0].Problem, "signature") {
		t.Errorf("a forged checkpoint: %+v", c)
	}
}

// TestCoverageWindow signs a long log with others' events between the last that
// is covered and the checkpoint.
func TestCoverageWindow(t *testing.T) {
	for _, tt := range []struct {
		before, between int
		covered         uint64
	}{{10, 0, 11}, {9000, 100, 9001}, {20_000, 4000, 20_001}, {20_000, 10_000, 0}} {
		s := &story{t: t, objects: map[schemas.Digest][]byte{}}
		s.event(schemas.AnalysisSubmitted{})
		fill := func(n int) {
			for range n {
				k := strconv.Itoa(len(s.entries))
				s.add("segment.stdout."+k, id+"/segment/stdout/"+k, schemas.Segment{Source: schemas.SourceStdout, N: len(s.entries), Data: []byte("x"), Size: 1})
			}
		}
		fill(tt.before)
		c := petrifile.Sign(testKey(1), "default", id, "start_analysis", s.tree.Size(), s.tree.Root())
		fill(tt.between)
		s.add("checkpoint."+strconv.FormatUint(c.Events, 10), id+"/checkpoint/0", c)
		log, err := petrifile.NewLog("default", id, "")
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range s.entries {
			if _, err := log.Add(e); err != nil {
				t.Fatal(err)
			}
		}
		if got := log.Coverage(); got.Covered != tt.covered {
			t.Errorf("%d events, then %d: covered are %d, not %d (%+v)", tt.before, tt.between, got.Covered, tt.covered, got.Checkpoints)
		}
	}
}

// FuzzReader reads whatever comes. What it accepts it can write again, and gets
// the same contents back.
func FuzzReader(f *testing.F) {
	s := tell(f)
	small := &story{t: f, objects: map[schemas.Digest][]byte{}}
	small.event(schemas.AnalysisSubmitted{})
	small.artifact(schemas.KindSample, []byte("x"))
	small.event(schemas.AnalysisCancelled{By: "test"})
	f.Add(small.file(header))
	f.Add(small.file(header, schemas.KindSample))
	f.Add(s.file(petrifile.Header{Tenant: "default", Analysis: id, Thin: true}))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := read(b)
		if err != nil {
			if c != nil {
				for _, e := range c.Entries {
					if len(e.Body) > petrifile.MaxEvent || len(e.Subject) > petrifile.MaxSubject {
						t.Fatal("it gave more than its limits")
					}
				}
			}
			return
		}
		again, err := c.write()
		if err != nil {
			t.Fatalf("what was accepted cannot be written: %v", err)
		}
		d, err := read(again)
		if err != nil {
			t.Fatalf("what was written is refused: %v", err)
		}
		c.Trailer.SHA256, d.Trailer.SHA256 = schemas.Digest{}, schemas.Digest{} // compressed otherwise it is another file
		if diff := cmp.Diff(c, d); diff != "" {
			t.Fatal(diff)
		}
	})
}

// TestForeign says in a file what was left out of its log, once.
func TestForeign(t *testing.T) {
	s := tell(t)
	var buf bytes.Buffer
	w, err := petrifile.NewWriter(&buf, petrifile.Header{Tenant: "default", Analysis: id, Thin: true})
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range s.entries {
		if _, err := w.Event(e); err != nil {
			t.Fatal(err)
		}
	}
	w.Log().SetForeign(3)
	trailer, err := w.Close()
	if err != nil {
		t.Fatal(err)
	}
	_, got, c, err := petrifile.Verify(bytes.NewReader(buf.Bytes()), "")
	if err != nil || got != trailer || got.Foreign != 3 || c.Foreign != 3 {
		t.Fatalf("%+v, %+v, %v", got, c, err)
	}
	record := []byte("f\x00\x00\x00\x0e{\"messages\":3}")
	before, after, ok := bytes.Cut(buf.Bytes(), record)
	if !ok {
		t.Fatal("there is no record of it")
	}
	for name, b := range map[string][]byte{
		"twice":     slices.Concat(before, record, record, after),
		"none":      slices.Concat(before, []byte("f\x00\x00\x00\x0e{\"messages\":0}"), after),
		"no number": slices.Concat(before, []byte("f\x00\x00\x00\x0e{\"messages\":x}"), after),
		"changed":   slices.Concat(before, []byte("f\x00\x00\x00\x0e{\"messages\":2}"), after),
		"left out":  slices.Concat(before, after),
	} {
		if _, _, _, err := petrifile.Verify(bytes.NewReader(b), ""); !errors.Is(err, petrifile.ErrFormat) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
