// SPDX-License-Identifier: Apache-2.0

package analyzers

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/petri-sandbox/petri/schemas"
)

var small = limits{Findings: 10, FindingBytes: 4000, Result: 1000, Derived: 3, DerivedBytes: 2000, DerivedEach: 500, DerivedAll: 900}

// discard stores nothing, and says what it would have stored.
func discard(_ context.Context, r io.Reader) (schemas.Digest, int64, error) {
	b, err := io.ReadAll(r)
	return schemas.Sum(b), int64(len(b)), err
}

// written is what a child writes for what an analyzer emits.
func written(t testing.TB, emit func(Emit) error) []byte {
	t.Helper()
	var b bytes.Buffer
	w := bufio.NewWriter(&b)
	writeJSONFrame(w, frameHello, helloFrame{})
	req := request{Analyzer: "x", Version: "1.0.0", Deadline: schemas.Duration(1 << 40), Limits: small, Events: -1}
	end, err := work([]Analyzer{emitter{emit}}, req, w)
	if err != nil {
		t.Fatal(err)
	}
	writeJSONFrame(w, frameEnd, end)
	w.Flush()
	return b.Bytes()
}

type emitter struct{ emit func(Emit) error }

func (emitter) Info() Info {
	return Info{Name: "x", Version: "1.0.0", Kinds: []schemas.Kind{schemas.KindSample}}
}
func (e emitter) Analyze(_ context.Context, _ Job, emit Emit) error { return e.emit(emit) }

// TestRoundTrip sends what both sides agree on through the frames.
func TestRoundTrip(t *testing.T) {
	b := written(t, func(e Emit) error {
		var errs []error
		for i := range 15 {
			f, err := NewFinding("n", fmt.Sprint(i), schemas.SeverityInfo, map[string]any{"html": "<&>\u2028", "i": i})
			errs = append(errs, err, e.Finding(f))
		}
		errs = append(errs, EmitJSON(e, "petri.result.x.v1", "doc"))
		for _, n := range []int{400, 600, 400, 400, 0, 0} {
			errs = append(errs, e.Derive(schemas.Derived{Kind: "dropped", Name: fmt.Sprint(n)}, strings.NewReader(strings.Repeat("x", n))))
		}
		return errors.Join(errs...)
	})
	a, err := readAnswer(t.Context(), bytes.NewReader(b), small, discard)
	if err != nil || a.status != schemas.TaskDone {
		t.Fatalf("%+v, %v", a, err)
	}
	if len(a.findings) != 10 || string(a.findings[9].Data) != `{"html":"\u003c\u0026\u003e\u2028","i":9}` {
		t.Errorf("findings %+v", a.findings)
	}
	// 600 is too large, the third 400 too much, and of the rest there is one too many.
	var names []string
	for _, d := range a.derived {
		names = append(names, d.Name)
	}
	if diff := cmp.Diff([]string{"400", "400", "0"}, names); diff != "" {
		t.Error(diff)
	}
	if a.cut == nil || *a.cut != (schemas.TaskCut{Findings: 5, Derived: 3}) {
		t.Errorf("cut %+v", a.cut)
	}
	if want := schemas.Sum([]byte("\"doc\"\n")); a.result == nil || a.result.SHA256 != want || a.result.Size != 6 {
		t.Errorf("result %+v", a.result)
	}
	// Cut anywhere, it is no answer.
	for n := range b {
		if a, err := readAnswer(t.Context(), bytes.NewReader(b[:n]), small, discard); err == nil {
			t.Fatalf("%d of %d bytes are taken for an answer: %+v", n, len(b), a)
		}
	}
}

func FuzzReadAnswer(f *testing.F) {
	f.Add(written(f, func(e Emit) error {
		e.Finding(schemas.Finding{Kind: "n", Title: "t", Data: []byte(`{"a":1}`), Techniques: []string{"T1027.002"}})
		e.Derive(schemas.Derived{Kind: "dropped", Name: "n", MediaType: "a/b", File: &schemas.FileMeta{Path: "/x"}}, strings.NewReader("bytes"))
		return EmitJSON(e, "petri.result.x.v1", 1)
	}))
	f.Add(written(f, func(Emit) error { return Skip("no") }))
	f.Add(written(f, func(Emit) error { return errors.New("no") }))
	f.Add([]byte("H\x00\x00\x00\x02{}D\x00\x00\x00\x12{\"kind\":\"dropped\"}B\x00\x00\x00\x01xA\x00\x00\x00\x00E\x00\x00\x00\x11{\"status\":\"done\"}"))
	f.Fuzz(func(t *testing.T, b []byte) {
		var stored int64
		a, err := readAnswer(t.Context(), bytes.NewReader(b), small, func(ctx context.Context, r io.Reader) (schemas.Digest, int64, error) {
			d, n, err := discard(ctx, r)
			stored += n
			return d, n, err
		})
		if stored > int64(len(b)) {
			t.Fatalf("%d bytes were stored of %d", stored, len(b))
		}
		var up *uploadError
		if errors.As(err, &up) {
			t.Fatal(err)
		}
		if err != nil {
			return
		}
		switch a.status {
		case schemas.TaskDone:
			if a.err != "" {
				t.Fatal(a.err)
			}
		case schemas.TaskFailed, schemas.TaskSkipped:
			if a.err == "" || a.findings != nil || a.derived != nil || a.result != nil {
				t.Fatalf("%+v", a)
			}
		default:
			t.Fatalf("status %q", a.status)
		}
		if len(a.findings) > small.Findings || len(a.derived) > small.Derived || a.result != nil && a.result.Size > small.Result {
			t.Fatalf("%+v", a)
		}
		for _, x := range a.findings {
			if err := checkFinding(x); err != nil {
				t.Fatal(err)
			}
		}
		for _, d := range a.derived {
			if err := checkDerived(d); err != nil || d.Size > small.DerivedEach {
				t.Fatal(d, err)
			}
		}
	})
}
