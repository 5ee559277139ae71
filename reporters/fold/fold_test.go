// SPDX-License-Identifier: Apache-2.0

package fold_test

import (
	"bufio"
	"bytes"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/petri-sandbox/petri/reporters/fold"
	"github.com/petri-sandbox/petri/schemas"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// foldEnv makes the test binary fold the log of that name and print the report:
// a process of its own has map orders of its own.
const foldEnv = "PETRI_TEST_FOLD"

func TestMain(m *testing.M) {
	if name := os.Getenv(foldEnv); name != "" {
		b, err := report(name)
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Stdout.Write(b)
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// documents are the result documents of the recorded logs.
type documents struct{}

func (documents) Document(d schemas.Digest, limit int64) ([]byte, error) {
	b, err := os.ReadFile(filepath.Join("testdata/documents", d.String()+".json"))
	if err == nil && int64(len(b)) > limit {
		err = fmt.Errorf("it has %d bytes", len(b))
	}
	return b, err
}

// recorded reads a log that petri events --json printed.
func recorded(name string) ([]schemas.Event, error) {
	b, err := os.ReadFile("testdata/" + name + ".log")
	if err != nil {
		return nil, err
	}
	var out []schemas.Event
	lines := bufio.NewScanner(bytes.NewReader(b))
	lines.Buffer(nil, 4<<20)
	for lines.Scan() {
		e, err := schemas.ParseEvent(lines.Bytes())
		if err != nil {
			return nil, fmt.Errorf("%s, line %d: %w", name, len(out)+1, err)
		}
		out = append(out, e)
	}
	return out, lines.Err()
}

func events(t testing.TB, name string) []schemas.Event {
	t.Helper()
	list, err := recorded(name)
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func folded(t testing.TB, list []schemas.Event) *schemas.Report {
	t.Helper()
	r, err := foldAll(list).Report(documents{})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func foldAll(list []schemas.Event) *fold.Fold {
	f := fold.New()
	for _, e := range list {
		f.Add(e)
	}
	return f
}

func report(name string) ([]byte, error) {
	list, err := recorded(name)
	if err != nil {
		return nil, err
	}
	r, err := foldAll(list).Report(documents{})
	if err != nil {
		return nil, err
	}
	return fold.Encode(r)
}

func encode(t testing.TB, r *schemas.Report) string {
	t.Helper()
	b, err := fold.Encode(r)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// logs are the recorded ones, each of a real run, and what they must come to.
var logs = map[string]schemas.Outcome{
	"completed":    schemas.OutcomeCompleted,
	"incomplete":   schemas.OutcomeIncomplete, // the sample reset the machine
	"untraced":     schemas.OutcomeIncomplete,
	"not_executed": schemas.OutcomeNotExecuted,
	"unsupported":  schemas.OutcomeUnsupported,
	"failed":       schemas.OutcomeFailed, // sandboxd was killed
	"cancelled":    schemas.OutcomeCancelled,
}

func TestGolden(t *testing.T) {
	files, err := filepath.Glob("testdata/*.log")
	if err != nil || len(files) != len(logs) {
		t.Fatalf("testdata has the logs %v (%v), not %d", files, err, len(logs))
	}
	for name, outcome := range logs {
		t.Run(name, func(t *testing.T) {
			got, err := report(name)
			if err != nil {
				t.Fatal(err)
			}
			golden := "testdata/" + name + ".golden"
			if *update {
				if err := os.WriteFile(golden, got, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatalf("%v; go test -update makes it", err)
			}
			if diff := cmp.Diff(string(want), string(got)); diff != "" {
				t.Errorf("it differs from %s (-want +got); is that meant? go test -update:\n%s", golden, diff)
			}
			if err := validate(got); err != nil {
				t.Errorf("the report is not valid: %v", err)
			}
			if r := folded(t, events(t, name)); r.Outcome.Value != outcome {
				t.Errorf("the outcome is %s, not %s", r.Outcome.Value, outcome)
			}
		})
	}
}

// validate checks a report against its committed schema.
func validate(report []byte) error {
	name := schemas.Report{}.EventType()
	f, err := os.Open("../../schemas/json/" + name + ".json")
	if err != nil {
		return err
	}
	defer f.Close()
	schema, err := jsonschema.UnmarshalJSON(f)
	if err != nil {
		return err
	}
	c := jsonschema.NewCompiler()
	c.AssertFormat()
	if err := c.AddResource(schemas.SchemaURI(name), schema); err != nil {
		return err
	}
	s, err := c.Compile(schemas.SchemaURI(name))
	if err != nil {
		return err
	}
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(report))
	if err != nil {
		return err
	}
	return s.Validate(doc)
}

// TestOtherProcesses folds each log in processes of their own: Go orders maps
// otherwise in each, so the same bytes are no accident.
func TestOtherProcesses(t *testing.T) {
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for name := range logs {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			want, err := report(name)
			if err != nil {
				t.Fatal(err)
			}
			for range 3 {
				cmd := exec.CommandContext(t.Context(), exe)
				cmd.Env = append(os.Environ(), foldEnv+"="+name)
				got, err := cmd.Output()
				if err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(string(want), string(got)); diff != "" {
					t.Fatalf("another process folds another report (-here +there):\n%s", diff)
				}
			}
		})
	}
}

// TestMapOrder folds one log often enough for every order that Go gives a map
// of a few keys.
func TestMapOrder(t *testing.T) {
	list := events(t, "completed")
	want := encode(t, folded(t, list))
	for range 50 {
		if got := encode(t, folded(t, list)); got != want {
			t.Fatalf("two folds of one log differ (-first +second):\n%s", cmp.Diff(want, got))
		}
	}
}

// TestGoingOn asks for a report after each event: that neither changes the last
// one, nor a report that was made before.
func TestGoingOn(t *testing.T) {
	list := events(t, "completed")
	want := encode(t, folded(t, list))
	f := fold.New()
	var before []*schemas.Report
	var texts []string
	for _, e := range list {
		f.Add(e)
		r, err := f.Report(documents{})
		if err != nil {
			t.Fatal(err)
		}
		before, texts = append(before, r), append(texts, encode(t, r))
	}
	if diff := cmp.Diff(want, texts[len(texts)-1]); diff != "" {
		t.Errorf("reports on the way change the last one (-want +got):\n%s", diff)
	}
	for i, r := range before {
		if got := encode(t, r); got != texts[i] {
			t.Errorf("the report after event %d changed later (-then +now):\n%s", i, cmp.Diff(texts[i], got))
		}
	}
}

// TestTwice delivers every event twice, and every event again at the end: at
// least once is what a bus promises.
func TestTwice(t *testing.T) {
	for name := range logs {
		t.Run(name, func(t *testing.T) {
			list := events(t, name)
			want := encode(t, folded(t, list))
			var twice []schemas.Event
			for _, e := range list {
				twice = append(twice, e, e)
			}
			if diff := cmp.Diff(want, encode(t, folded(t, twice))); diff != "" {
				t.Errorf("each event twice in a row gives another report (-once +twice):\n%s", diff)
			}
			if diff := cmp.Diff(want, encode(t, folded(t, append(list[:len(list):len(list)], list...)))); diff != "" {
				t.Errorf("the log twice gives another report (-once +twice):\n%s", diff)
			}
		})
	}
}

func TestNoSubmission(t *testing.T) {
	list := events(t, "completed")
	for name, list := range map[string][]schemas.Event{"empty": nil, "without its start": list[1:]} {
		if r, err := foldAll(list).Report(documents{}); err != fold.ErrNoSubmission || r != nil {
			t.Errorf("%s: %v, %v", name, r, err)
		}
	}
}

// TestMissingDocument folds a log whose result documents are gone.
func TestMissingDocument(t *testing.T) {
	r, err := foldAll(events(t, "completed")).Report(none{})
	if err != nil {
		t.Fatal(err)
	}
	if r.Outcome.Value != schemas.OutcomeIncomplete || r.Coverage.Whole {
		t.Errorf("outcome %s, whole %v", r.Outcome.Value, r.Coverage.Whole)
	}
	if len(r.Outcome.Reasons) != 1 || !strings.Contains(r.Outcome.Reasons[0], "the result of behavior cannot be read") {
		t.Errorf("reasons %q", r.Outcome.Reasons)
	}
}

// none has no document.
type none struct{}

func (none) Document(d schemas.Digest, _ int64) ([]byte, error) {
	return nil, fmt.Errorf("%w: %s", fold.ErrDocument, d)
}

// TestStoreAway folds a log whose result documents cannot be had at the moment.
func TestStoreAway(t *testing.T) {
	if r, err := foldAll(events(t, "completed")).Report(away{}); !errors.Is(err, errAway) || r != nil {
		t.Errorf("%v, %v: a report depends on when it was asked for", r, err)
	}
}

var errAway = errors.New("the server does not answer")

type away struct{}

func (away) Document(schemas.Digest, int64) ([]byte, error) { return nil, errAway }

// TestDetailOfMachine has a machine of which only the CPU is known, as of one that
// replays.
func TestDetailOfMachine(t *testing.T) {
	for spec, want := range map[schemas.MachineSpec]string{
		{Arch: "amd64", Start: "warm", Accel: "tcg"}: "amd64, warm, tcg",
		{Arch: "amd64"}: "amd64",
	} {
		e, err := schemas.NewEvent("default", "A", "A/context/0", time.Unix(0, 0), schemas.OriginHost, schemas.PrePoweron{Machine: spec})
		if err != nil {
			t.Fatal(err)
		}
		if got := fold.Detail(e); got != want {
			t.Errorf("%+v is %q", spec, got)
		}
	}
}
