// SPDX-License-Identifier: Apache-2.0

//go:build vm

package app_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/petri-sandbox/petri/bus"
	"github.com/petri-sandbox/petri/schemas"
)

// seeOrder is the order of SEE's events in a run of its documented protocol,
// https://see.readthedocs.io. Events of Petri's own may stand between them.
var seeOrder = []string{
	schemas.EventPrePoweron, schemas.EventPostPoweron, schemas.EventIPAddress, schemas.EventRunSample,
	schemas.EventPrePause, schemas.EventPostPause, schemas.EventSnapshotsCapture, schemas.EventPreResume, schemas.EventPostResume,
	schemas.EventPreShutdown, schemas.EventPostShutdown, schemas.EventStartAnalysis, schemas.EventWaitAnalysis,
}

// ownEvents are Petri's own events of a run in which nothing goes wrong.
var ownEvents = []string{
	schemas.EventSubmitted, schemas.EventClaimed, schemas.EventGuestReady, schemas.EventSampleStarted, schemas.EventSampleExited, schemas.EventTreeExited,
	schemas.EventCompleted,
}

// sampleSource is a program that prints something and leaves a file behind.
const sampleSource = `#include <stdio.h>
int main(void)
{
	FILE *f = fopen("/tmp/left-behind", "w");
	if (f) {
		fputs("by the sample\n", f);
		fclose(f);
	}
	puts("hello from the guest");
	return f ? 0 : 1;
}
`

// TestOrderForIndependentClient runs a program in a guest and reads the log
// with a client that Petri did not write: SEE's events are in SEE's order, and
// every event is valid against its JSON Schema. So are the documents that the
// events name, and the report.
func TestOrderForIndependentClient(t *testing.T) {
	needClient(t)
	bin := build(t)
	addr, data := up(t, bin)
	analysis := submit(t, bin, data, program(t, sampleSource))
	b, err := bus.Connect(t.Context(), addr, "test")
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	waitForEnding(t, b, analysis)

	entries := readIndependently(t, addr, analysis)
	validate := validator(t)
	var context, families, documents []string
	last := uint64(0)
	for _, e := range entries {
		event, err := schemas.ParseEvent(e.Event)
		if err != nil {
			t.Fatalf("sequence %d: %v", e.Seq, err)
		}
		if err := validate(schemas.EnvelopeSchema, e.Event); err != nil {
			t.Errorf("the envelope of sequence %d, %s, is not valid: %v\n%s", e.Seq, event.Type, err, e.Event)
		}
		if err := validate(event.Type, event.Data); err != nil {
			t.Errorf("sequence %d, %s, is not valid: %v\n%s", e.Seq, event.Type, err, e.Event)
		}
		if schema, digest := document(t, event); schema != "" {
			documents = append(documents, schema)
			body, err := b.Artifacts().ReadAll(t.Context(), digest, 64<<20)
			if err != nil {
				t.Errorf("read the %s that sequence %d names: %v", schema, e.Seq, err)
			} else if err := validate(schema, body); err != nil {
				t.Errorf("the %s that sequence %d names is not valid: %v\n%s", schema, e.Seq, err, body)
			}
		}
		if e.Seq <= last {
			t.Errorf("sequence %d came after %d", e.Seq, last)
		}
		last = e.Seq
		if event.Analysis != analysis || event.Tenant != schemas.DefaultTenant {
			t.Errorf("sequence %d is of analysis %q of tenant %q", e.Seq, event.Analysis, event.Tenant)
		}
		if !slices.Contains(families, event.Family()) {
			families = append(families, event.Family())
		}
		if event.Family() != "context" {
			continue
		}
		if want := analysis + "/context/" + strconv.Itoa(len(context)); event.ID != want {
			t.Errorf("%s has the id %q, not %q", event.Name(), event.ID, want)
		}
		if want := "petri." + schemas.DefaultTenant + "." + analysis + ".context." + event.Name(); e.Subject != want {
			t.Errorf("%s has the subject %q, not %q", event.Name(), e.Subject, want)
		}
		context = append(context, event.Name())
	}
	t.Logf("%d events; context: %s; documents: %s", len(entries), strings.Join(context, " "), strings.Join(documents, " "))
	for _, schema := range []string{schemas.ManifestSchema, schemas.StaticSchema} {
		if !slices.Contains(documents, schema) {
			t.Errorf("no event names a %s", schema)
		}
	}
	report := run(t, bin+"/petri", "--data", data, "--json", "report", analysis)
	if err := validate(schemas.Report{}.EventType(), []byte(report)); err != nil {
		t.Errorf("the report is not valid: %v\n%s", err, report)
	}

	isSEE := func(name string) bool { return slices.Contains(seeOrder, name) }
	see := slices.DeleteFunc(slices.Clone(context), func(name string) bool { return !isSEE(name) })
	if diff := gocmp.Diff(seeOrder, see); diff != "" {
		t.Errorf("SEE's events (-want +got):\n%s", diff)
	}
	// A host that is so busy that its log answers late is no fault of the run's.
	own := slices.DeleteFunc(slices.Clone(context), func(name string) bool { return isSEE(name) || name == schemas.EventLogAway })
	if diff := gocmp.Diff(ownEvents, own); diff != "" {
		t.Errorf("Petri's own events (-want +got):\n%s", diff)
	}
	if got := context[len(context)-1]; got != schemas.EventCompleted {
		t.Errorf("the last context event is %s, not %s", got, schemas.EventCompleted)
	}
	if diff := gocmp.Diff([]string{schemas.EventSubmitted, schemas.EventClaimed}, context[:2]); diff != "" {
		t.Errorf("first context events (-want +got):\n%s", diff)
	}
	for _, family := range []string{"artifact", "segment", "finding", "receipt"} {
		if !slices.Contains(families, family) {
			t.Errorf("the log holds no event of the family %s", family)
		}
	}
}

// needClient fails if the independent client cannot run.
func needClient(t *testing.T) {
	t.Helper()
	if _, err := exec.LookPath("node"); err != nil {
		t.Fatalf("%v: the independent client needs Node.js (install it: make setup)", err)
	}
	for _, pkg := range []string{"transport-node", "jetstream", "nats-core"} {
		path := filepath.Join(root, "bus/testdata/js/node_modules/@nats-io", pkg, "package.json")
		if _, err := os.Stat(path); err != nil {
			t.Fatalf("%v: the independent client needs its npm packages (install them: make setup)", err)
		}
	}
}

// logged is a line of order.mjs.
type logged struct {
	Seq     uint64          `json:"seq"`
	Subject string          `json:"subject"`
	Event   json.RawMessage `json:"event"`
}

func readIndependently(t *testing.T, addr bus.Address, analysis string) []logged {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "node", "order.mjs", schemas.DefaultTenant, analysis)
	cmd.Dir = filepath.Join(root, "bus/testdata/js")
	cmd.Env = append(os.Environ(), "NATS_URL="+addr.URL, "NATS_CREDS="+addr.Creds)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("the independent client: %v\n%s", err, stderr.Bytes())
	}
	var entries []logged
	lines := bufio.NewScanner(bytes.NewReader(out))
	lines.Buffer(nil, 16<<20)
	for lines.Scan() {
		var e logged
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			t.Fatalf("line %d of the independent client: %v", len(entries)+1, err)
		}
		entries = append(entries, e)
	}
	if err := lines.Err(); err != nil {
		t.Fatal(err)
	}
	if len(entries) == 0 {
		t.Fatal("the independent client read nothing")
	}
	return entries
}

// document is the schema and the digest of the JSON document that an event
// names, if it names one.
func document(t *testing.T, e schemas.Event) (schema string, digest schemas.Digest) {
	t.Helper()
	var a schemas.Artifact
	var r schemas.Receipt
	switch e.Type {
	case a.EventType():
		if err := e.Decode(&a); err != nil {
			t.Fatal(err)
		}
		return map[string]string{
			schemas.ManifestMediaType: schemas.ManifestSchema, schemas.DropsMediaType: schemas.DropsSchema, schemas.TemplateMediaType: schemas.TemplateSchema,
		}[a.MediaType], a.SHA256
	case r.EventType():
		if err := e.Decode(&r); err != nil {
			t.Fatal(err)
		}
		if r.Result != nil {
			return r.Result.Schema, r.Result.SHA256
		}
	}
	return "", schemas.Digest{}
}

// validator checks JSON against the committed schema of that name.
func validator(t *testing.T) func(name string, doc []byte) error {
	t.Helper()
	c := jsonschema.NewCompiler()
	c.AssertFormat()
	for _, info := range schemas.Types() {
		f, err := os.Open(filepath.Join(root, "schemas/json", info.Name+".json"))
		if err != nil {
			t.Fatal(err)
		}
		doc, err := jsonschema.UnmarshalJSON(f)
		f.Close()
		if err == nil {
			err = c.AddResource(schemas.SchemaURI(info.Name), doc)
		}
		if err != nil {
			t.Fatalf("schema %s: %v", info.Name, err)
		}
	}
	return func(name string, doc []byte) error {
		s, err := c.Compile(schemas.SchemaURI(name))
		if err != nil {
			return err
		}
		v, err := jsonschema.UnmarshalJSON(bytes.NewReader(doc))
		if err != nil {
			return err
		}
		return s.Validate(v)
	}
}

// TestOrderOfPoweroff takes the machine's power in the end. Nothing of the trace
// is lost by that: the report is whole.
func TestOrderOfPoweroff(t *testing.T) {
	bin := build(t)
	dir := t.TempDir()
	protocol := filepath.Join(dir, "protocol.yaml")
	text := `name: poweroff
steps:
  - poweron
  - wait_ip
  - run_sample
  - wait: {until: tree_exited, limit: runtime}
  - poweroff
  - start_analysis
  - wait_analysis
`
	hooks := filepath.Join(dir, "hooks.yaml")
	for path, text := range map[string]string{protocol: text, hooks: "hooks:\n  - {name: console, on: [post_poweroff]}\n"} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	r, _, code := detonate(t, bin, filepath.Join(dir, "data"), "--protocol", protocol, "--hooks", hooks, program(t, sampleSource))
	if code != 0 || r.Outcome.Value != schemas.OutcomeCompleted {
		t.Errorf("exit code %d, outcome %+v", code, r.Outcome)
	}
	if !slices.ContainsFunc(r.Timeline, func(e schemas.TimelineEntry) bool { return e.Event == schemas.EventPostPoweroff }) {
		t.Errorf("the machine's power was not taken: %+v", r.Timeline)
	}
}
