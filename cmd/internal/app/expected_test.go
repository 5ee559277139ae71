// SPDX-License-Identifier: Apache-2.0

package app

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/petri-sandbox/petri/bus"
	"github.com/petri-sandbox/petri/sandboxd"
	"github.com/petri-sandbox/petri/sandboxd/hooks"
	"github.com/petri-sandbox/petri/sandboxd/machine"
	"github.com/petri-sandbox/petri/schemas"
)

// submitted puts a small sample into the queue.
func submitted(t *testing.T, b *bus.Bus, expected []string) schemas.Submission {
	t.Helper()
	d, n, err := b.Artifacts().Put(t.Context(), schemas.KindSample, strings.NewReader("#!/bin/sh\nexit 0\n"))
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	s := schemas.Submission{
		ID: schemas.NewID(now), Tenant: "default", Profile: "amd64", Submitted: now, Expected: expected, Hooks: "hooks: []",
		Protocol: "name: short\nsteps:\n  - poweron: {timeout: 10s}\n  - run_sample: {timeout: 10s}\n" +
			"  - wait: {until: [tree_exited], limit: 10s}\n  - poweroff\n  - start_analysis\n  - wait_analysis: {timeout: 3s}\n",
		Sample:  schemas.Sample{SHA256: d, Size: n, Name: "sample.sh", Type: schemas.SampleType{Format: "script"}},
		Options: schemas.Options{Runtime: schemas.Duration(20 * time.Second)},
	}
	if err := b.Submit(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	return s
}

func claim(t *testing.T, j jobsAdapter) (sandboxd.Job, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	return j.Claim(ctx)
}

// TestExpected takes jobs under every word of the operator's.
func TestExpected(t *testing.T) {
	b := StartBus(t)
	q, err := b.Queue(t.Context(), []string{"amd64"})
	if err != nil {
		t.Fatal(err)
	}
	jobs := jobsAdapter{b, q}
	claimed := func(named []string) []string {
		t.Helper()
		submitted(t, b, named)
		j, err := claim(t, jobs)
		if err != nil {
			t.Fatal(err)
		}
		if err := j.Done(t.Context()); err != nil {
			t.Fatal(err)
		}
		return j.Submission().Expected
	}
	brought := claimed(nil)
	if !slices.Contains(brought, "static") || !slices.Contains(brought, "behavior") {
		t.Errorf("without a list %v are expected", brought)
	}
	if err := b.Define(t.Context(), schemas.Definition{Schema: schemas.DefinitionSchema, Name: "static", Removed: true}); err != nil {
		t.Fatal(err)
	}
	want := slices.DeleteFunc(slices.Clone(brought), func(s string) bool { return s == "static" })
	if diff := cmp.Diff(want, claimed(nil)); diff != "" {
		t.Errorf("without a list, and static is removed (-want +got):\n%s", diff)
	}
	for _, list := range [][]string{{"static", "yara"}, {}} {
		if err := b.SetProfile(t.Context(), schemas.Profile{Schema: schemas.ProfileSchema, Name: "amd64", Expected: list}); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(list, claimed(nil)); diff != "" {
			t.Errorf("the operator's list (-want +got):\n%s", diff)
		}
	}
	for _, named := range [][]string{{"mine"}, {}} {
		if diff := cmp.Diff(named, claimed(named)); diff != "" {
			t.Errorf("the submission's own list (-want +got):\n%s", diff)
		}
	}
}

// TestExpectedUnreadable gives a job back while the operator's list cannot be
// read, or what is removed: by another list the analysis could pass for whole.
func TestExpectedUnreadable(t *testing.T) {
	for _, bucket := range []string{"PROFILES", "ANALYZERS"} {
		t.Run(bucket, func(t *testing.T) {
			b := StartBus(t)
			q, err := b.Queue(t.Context(), []string{"amd64"})
			if err != nil {
				t.Fatal(err)
			}
			if err := b.JetStream().DeleteKeyValue(t.Context(), bucket); err != nil {
				t.Fatal(err)
			}
			sub := submitted(t, b, nil)
			if _, err := claim(t, jobsAdapter{b, q}); err == nil || !strings.Contains(err.Error(), bucket) {
				t.Fatalf("claim: %v", err)
			}
			if err := b.Reconcile(t.Context(), bus.Limits{Log: 64 << 20, Store: 64 << 20}); err != nil {
				t.Fatal(err)
			}
			j, err := claim(t, jobsAdapter{b, q})
			if err != nil {
				t.Fatal(err)
			}
			if got := j.Submission(); got.ID != sub.ID || len(got.Expected) == 0 {
				t.Errorf("%+v", got)
			}
		})
	}
}

// quiet is a machine whose sample ends at once, and of which everything is there.
type quiet struct {
	machine.Machine // for what the protocol does not call
	o               machine.Observer
	off             sync.Once
}

func (m *quiet) Poweron(_ context.Context, id machine.Identity) (machine.Boot, error) {
	return machine.Boot{Ready: schemas.GuestReady{Identity: id.Identity}}, nil
}

func (m *quiet) Run(_ context.Context, r machine.Run, sample *os.File) (machine.Started, error) {
	b, err := io.ReadAll(io.NewSectionReader(sample, 0, r.Size))
	if err != nil {
		return machine.Started{}, err
	}
	code := 0
	m.o.Event(machine.Event{Time: time.Now(), Exited: &schemas.SampleExited{Reason: "exited", ExitCode: &code}})
	m.o.Event(machine.Event{Time: time.Now(), Tree: &machine.TreeExited{}})
	return machine.Started{PID: 7, Path: "/root/sample", SHA256: schemas.Sum(b)}, nil
}

func (m *quiet) Flush(context.Context) error    { return nil }
func (m *quiet) Poweroff(context.Context) error { return m.Close() }

func (m *quiet) Close() error {
	m.off.Do(func() {
		for _, s := range []schemas.Source{schemas.SourceTrace, schemas.SourcePcap, schemas.SourceStdout, schemas.SourceStderr} {
			m.o.End(s, schemas.SourceCoverage{Source: s, Status: schemas.StatusWhole})
		}
	})
	return nil
}

type quietMachines struct{}

func (quietMachines) New(_ context.Context, _ sandboxd.MachineSpec, o machine.Observer) (machine.Machine, error) {
	return &quiet{o: o}, nil
}

// TestSilentAnalyzer runs whole analyses, but for the guest, and folds their
// reports: an expected analyzer that does not answer is named with the reason,
// and the analysis does not pass for complete.
func TestSilentAnalyzer(t *testing.T) {
	b := StartBus(t)
	ctx, stop := context.WithCancel(context.Background())
	var running sync.WaitGroup
	defer running.Wait()
	defer stop()
	for _, name := range []string{"works", "silent"} {
		r := schemas.Registration{Name: name, Version: "1.0.0", Kinds: []schemas.Kind{schemas.KindSample}, Scope: schemas.ScopeArtifact, Deadline: schemas.Duration(time.Minute)}
		if err := b.Register(t.Context(), r); err != nil {
			t.Fatal(err)
		}
		running.Go(func() { b.Heartbeat(ctx, name, "test", "1.0.0") })
	}
	answer := func(task *bus.Task) error {
		err := b.Finish(ctx, schemas.FinishedTask{Task: task.Ref, Version: "1.0.0", Instance: "test", Status: schemas.TaskDone})
		return errors.Join(err, task.Done())
	}
	running.Go(func() {
		for ctx.Err() == nil {
			task, err := b.NextTask(ctx, "works")
			if err == nil {
				err = answer(task)
			}
			if err != nil && ctx.Err() == nil {
				t.Errorf("answer: %v", err)
				return
			}
		}
	})
	q, err := b.Queue(t.Context(), []string{"amd64"})
	if err != nil {
		t.Fatal(err)
	}
	w := sandboxd.NewWorker(logAdapter{b}, storeAdapter{b.Artifacts()}, jobsAdapter{b, q}, endingsAdapter{b}, quietMachines{}, sandboxd.Options{
		ID: "worker", Dir: t.TempDir(), Slog: slog.New(slog.NewTextHandler(t.Output(), nil)),
		Describe: func(guest, start string) schemas.MachineSpec { return schemas.MachineSpec{Arch: guest, Start: start} },
		InstallHooks: func(c *sandboxd.Context, text string) error {
			cfg, err := hooks.Parse(text)
			if err != nil {
				return err
			}
			return cfg.Install(c)
		},
	})
	running.Go(func() { _ = w.Run(ctx) })

	ended := make(chan string, 10)
	running.Go(func() {
		_ = b.Endings(ctx, "reporter", func(_ context.Context, e schemas.Event) error {
			ended <- e.Analysis
			return nil
		})
	})
	for _, row := range []struct {
		expected []string
		outcome  schemas.Outcome
		missing  map[string]string // reason by analyzer
		gaps     []string
	}{
		{[]string{}, schemas.OutcomeCompleted, map[string]string{"silent": "timeout"}, []string{}},
		{[]string{"works"}, schemas.OutcomeCompleted, map[string]string{"silent": "timeout"}, []string{}},
		{
			[]string{"never", "silent", "works"}, schemas.OutcomeIncomplete, map[string]string{"never": "unregistered", "silent": "timeout"},
			[]string{"analyzer never did not answer 1 of 1 tasks: unregistered", "analyzer silent did not answer 1 of 1 tasks: timeout"},
		},
	} {
		if err := b.SetProfile(t.Context(), schemas.Profile{Schema: schemas.ProfileSchema, Name: "amd64", Expected: row.expected}); err != nil {
			t.Fatal(err)
		}
		sub := submitted(t, b, nil)
		limit := time.After(3 * time.Minute)
		for id := ""; id != sub.ID; {
			select {
			case id = <-ended:
			case <-limit:
				t.Fatalf("with %v expected the analysis does not end", row.expected)
			}
		}
		r, _, err := Fold(t.Context(), b, sub.Tenant, sub.ID)
		if err != nil {
			t.Fatal(err)
		}
		if r.Outcome.Value != row.outcome || r.Verdict.Value == schemas.VerdictNoFindings {
			t.Errorf("with %v expected the outcome is %s %q, the verdict %s", row.expected, r.Outcome.Value, r.Outcome.Reasons, r.Verdict.Value)
		}
		if diff := cmp.Diff(row.gaps, []string(r.Coverage.Gaps)); diff != "" {
			t.Errorf("gaps with %v expected (-want +got):\n%s", row.expected, diff)
		}
		missing := map[string]string{}
		for _, a := range r.Coverage.Analyzers {
			if a.Expected != slices.Contains(row.expected, a.Name) {
				t.Errorf("with %v expected, of %s it says %v", row.expected, a.Name, a.Expected)
			}
			for _, m := range a.Missing {
				missing[a.Name] = m.Reason
			}
		}
		if diff := cmp.Diff(row.missing, missing); diff != "" {
			t.Errorf("missing with %v expected (-want +got):\n%s", row.expected, diff)
		}
	}
}
