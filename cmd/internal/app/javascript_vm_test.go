// SPDX-License-Identifier: Apache-2.0

//go:build vm

package app_test

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/petri-sandbox/petri/bus"
	"github.com/petri-sandbox/petri/bus/auth"
	"github.com/petri-sandbox/petri/schemas"
)

// slowSource is a program that has URLs in it and runs for a while.
const slowSource = `#include <stdio.h>
#include <unistd.h>
int main(void)
{
	puts("would call http://c2.example.test/gate.php and https://drop.example.test/x");
	fflush(stdout);
	sleep(6);
	return 0;
}
`

// TestJavaScriptAnalyzer lets an analyzer that is none of Petri's loose: it is
// added while an analysis runs, and then hunts over ten past ones, in the middle
// of which it is killed twice. It answers everything, and once.
func TestJavaScriptAnalyzer(t *testing.T) {
	needNode(t, "analyzers/examples/javascript", "@nats-io/transport-node", "@nats-io/jetstream", "fzstd")
	bin := build(t)
	addr, data := up(t, bin)
	b, err := bus.Connect(t.Context(), addr, "test")
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	past := make([]string, 10)
	for i := range past {
		past[i] = pastAnalysis(t, b, fmt.Sprintf("number %d calls http://%d.example.test/", i, i))
	}

	running := submit(t, bin, data, program(t, slowSource))
	waitFor(t, b, running, schemas.EventSampleStarted)
	js := startJavaScript(t, addr, data)
	js.expect("registered")
	waitForEnding(t, b, running)
	// The sample was announced before the analyzer came, what it left behind
	// comes after: it owes nothing for the first.
	if n := count(t, b, running, schemas.LiveRun, "urls").receipts; n != 0 {
		t.Errorf("%d receipts for what was announced before", n)
	}
	second := submit(t, bin, data, program(t, slowSource))
	js.expect("task: petri.")
	waitForEnding(t, b, second)
	if got := count(t, b, second, schemas.LiveRun, "urls"); got.receipts != 1 || got.findings != 1 {
		t.Errorf("of the second analysis: %+v", got)
	}
	js.kill()

	hunt, err := b.StartRun(t.Context(), schemas.RunState{Tenant: schemas.DefaultTenant, Analyzers: []string{"urls"}, Kinds: []schemas.Kind{schemas.KindSample}, By: "test"})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		js = startJavaScript(t, addr, data)
		js.expect("task: run.")
		js.kill()
	}
	js = startJavaScript(t, addr, data)
	end := time.Now().Add(5 * time.Minute)
	for {
		if hunt, err = b.Run(t.Context(), hunt.Run); err != nil {
			t.Fatal(err)
		}
		if hunt.State == schemas.RunDone {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("the hunt has not ended: %+v", hunt)
		}
		time.Sleep(100 * time.Millisecond)
	}
	if hunt.Total != len(past)+2 || hunt.Done != hunt.Total {
		t.Errorf("the hunt: %+v", hunt)
	}
	for _, id := range append(past, running, second) {
		if got := count(t, b, id, hunt.Run, "urls"); got.receipts != 1 || got.findings != 1 {
			t.Errorf("of %s: %+v", id, got)
		}
	}
}

// needNode fails if Node.js or a program's npm packages are not there.
func needNode(t *testing.T, dir string, packages ...string) {
	t.Helper()
	if _, err := exec.LookPath("node"); err != nil {
		t.Fatalf("%v: the test needs Node.js (install it: make setup)", err)
	}
	for _, pkg := range packages {
		if _, err := os.Stat(filepath.Join(root, dir, "node_modules", pkg, "package.json")); err != nil {
			t.Fatalf("%v: the test needs npm packages (install them: make setup)", err)
		}
	}
}

// pastAnalysis writes an analysis that has ended into the log.
func pastAnalysis(t *testing.T, b *bus.Bus, sample string) string {
	t.Helper()
	id := schemas.NewID(time.Now())
	w, err := b.BeginContext(t.Context(), schemas.DefaultTenant, id)
	if err != nil {
		t.Fatal(err)
	}
	write := func(data schemas.Typed) {
		t.Helper()
		e, err := schemas.NewEvent(schemas.DefaultTenant, id, w.NextID(), time.Now(), schemas.OriginHost, data)
		if err == nil {
			err = w.Write(t.Context(), e)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	d, size, err := b.Artifacts().Put(t.Context(), schemas.KindSample, strings.NewReader(sample))
	if err != nil {
		t.Fatal(err)
	}
	write(schemas.AnalysisSubmitted{Attempt: 1, Submission: schemas.Submission{
		ID: id, Tenant: schemas.DefaultTenant, Profile: "amd64", Sample: schemas.Sample{SHA256: d, Name: "past", Size: size}, Submitted: time.Now(),
	}})
	a := schemas.Artifact{Kind: schemas.KindSample, SHA256: d, Size: size}
	e, err := schemas.NewEvent(schemas.DefaultTenant, id, a.ID(id), time.Now(), schemas.OriginHost, a)
	if err == nil {
		err = b.PublishArtifact(t.Context(), e, &a)
	}
	if err != nil {
		t.Fatal(err)
	}
	write(schemas.StartAnalysis{})
	write(schemas.AnalysisCompleted{Missing: []schemas.MissingTask{}})
	return id
}

// waitFor returns when the analysis has that context event.
func waitFor(t *testing.T, b *bus.Bus, analysis, event string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	err := b.Follow(ctx, schemas.DefaultTenant, analysis, 0, nil, func(e bus.Entry) error {
		if e.Event.Family() == "context" && e.Event.Name() == event {
			return bus.ErrStop
		}
		return nil
	})
	if err != nil {
		t.Fatalf("wait for %s: %v", event, err)
	}
}

type counts struct{ receipts, findings int }

// count counts what a run of an analyzer has given to an analysis.
func count(t *testing.T, b *bus.Bus, analysis, run, analyzer string) counts {
	t.Helper()
	var n counts
	err := b.Read(t.Context(), schemas.DefaultTenant, analysis, 0, func(e bus.Entry) error {
		var r schemas.Receipt
		var f schemas.FindingCommitted
		switch {
		case e.Event.Decode(&r) == nil && r.Task.Run == run && r.Task.Analyzer == analyzer:
			n.receipts++
			if r.Status != schemas.TaskDone {
				t.Errorf("a receipt says %s: %s", r.Status, r.Error)
			}
		case e.Event.Decode(&f) == nil && f.Task.Run == run && f.Task.Analyzer == analyzer:
			n.findings++
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// javascript is the example analyzer as a process.
type javascript struct {
	t     *testing.T
	cmd   *exec.Cmd
	lines chan string
	all   bytes.Buffer // of the lines; for the reader until lines is closed
}

// startJavaScript starts it with credentials that allow it to be that analyzer.
func startJavaScript(t *testing.T, addr bus.Address, data string) *javascript {
	t.Helper()
	creds, err := auth.Credentials(data, auth.Analyzer, "urls")
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("node", "urls.mjs")
	cmd.Dir = filepath.Join(root, "analyzers/examples/javascript")
	cmd.Env = append(os.Environ(), "NATS_URL="+addr.URL, "NATS_CREDS="+creds)
	r, w := io.Pipe()
	cmd.Stdout, cmd.Stderr = w, w
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	js := &javascript{t: t, cmd: cmd, lines: make(chan string, 1000)}
	go func() {
		defer close(js.lines)
		for s := bufio.NewScanner(r); s.Scan(); {
			js.all.WriteString(s.Text() + "\n")
			js.lines <- s.Text()
		}
	}()
	t.Cleanup(func() {
		js.kill()
		w.Close()
		for range js.lines { // until the reader has ended
		}
		if t.Failed() {
			t.Logf("urls.mjs:\n%s", js.all.String())
		}
	})
	return js
}

// expect waits for a line.
func (js *javascript) expect(text string) {
	js.t.Helper()
	end := time.After(time.Minute)
	for {
		select {
		case line, ok := <-js.lines:
			if !ok {
				js.t.Fatalf("the analyzer ended before it wrote %q", text)
			}
			if strings.Contains(line, text) {
				return
			}
		case <-end:
			js.t.Fatalf("the analyzer has not written %q", text)
		}
	}
}

// kill is kill -9.
func (js *javascript) kill() {
	_ = js.cmd.Process.Kill()
	_ = js.cmd.Wait()
}
