// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/petri-sandbox/petri/analyzers"
	"github.com/petri-sandbox/petri/analyzers/all"
	"github.com/petri-sandbox/petri/bus"
	"github.com/petri-sandbox/petri/bus/faults"
	"github.com/petri-sandbox/petri/schemas"
)

func TestMain(m *testing.M) {
	// An analyzer's child is this program again, by another name.
	analyzers.Child(all.Children())
	testscript.Main(m, map[string]func(){"petri": main})
}

// TestScript plays the sessions in testdata/script. None needs a guest; the
// sessions that do are the VM tests of cmd/internal/app.
func TestScript(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Setup: func(e *testscript.Env) error {
			// Nothing of this machine: no data, no images, no QEMU.
			e.Setenv("XDG_DATA_HOME", e.WorkDir+"/data")
			e.Setenv("XDG_CACHE_HOME", e.WorkDir+"/cache")
			e.Setenv("PETRI_NATS", "")
			// What guests have done.
			traces, err := filepath.Abs("../../schemas/behavior/testdata")
			if err != nil {
				return err
			}
			e.Setenv("TRACES", traces)
			// --data and --cache for those who are root.
			e.Setenv("D", e.WorkDir+"/petri")
			// For servers, until they are started.
			e.Setenv("PORT", faults.FreePort(t))
			err = writeRecorded("completed", e.WorkDir+"/recorded.petri")
			if err != nil {
				return err
			}
			b, err := os.ReadFile(e.WorkDir + "/recorded.petri")
			if err != nil {
				return err
			}
			b[len(b)/2] ^= 1
			return os.WriteFile(e.WorkDir+"/damaged.petri", b, 0o600)
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"exits": exits, "publish": publish, "sandbox": sandbox},
		Condition: func(cond string) (bool, error) {
			if cond != "root" {
				return false, errors.New("the only condition is root")
			}
			return os.Geteuid() == 0, nil
		},
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
	})
}

// exits is the script command "exits CODE PROGRAM ARG…".
func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE PROGRAM ARG…")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	code := 0
	err = ts.Exec(args[1], args[2:]...)
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		code = exit.ExitCode()
	} else {
		ts.Check(err)
	}
	if code != want {
		ts.Fatalf("exit code %d, not %d", code, want)
	}
}

// publish is the script command "publish SUBJECT TEXT": it sends a message to the
// Petri that runs on $D, as any client can.
func publish(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: publish SUBJECT TEXT")
	}
	a, err := bus.ReadAddress(ts.Getenv("D"))
	ts.Check(err)
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	b, err := bus.Connect(ctx, a, "script")
	ts.Check(err)
	defer b.Close()
	_, err = b.JetStream().Publish(ctx, args[0], []byte(args[1]))
	ts.Check(err)
}

// sandbox is the script command "sandbox CREDS": it takes the job that waits, and
// writes what a sandbox without a guest does.
func sandbox(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: sandbox CREDS")
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	b, err := bus.Connect(ctx, bus.Address{URL: ts.Getenv("PETRI_NATS"), CA: ts.Getenv("PETRI_CA"), Creds: ts.MkAbs(args[0])}, "script")
	ts.Check(err)
	defer b.Close()
	queue, err := b.Queue(ctx, []string{"amd64"})
	ts.Check(err)
	job, err := queue.Claim(ctx)
	ts.Check(err)
	sub := job.Submission
	w, err := b.BeginContext(ctx, sub.Tenant, sub.ID)
	ts.Check(err)
	write := func(data schemas.Typed) {
		e, err := schemas.NewEvent(sub.Tenant, sub.ID, w.NextID(), time.Now(), schemas.OriginHost, data)
		ts.Check(err)
		ts.Check(w.Write(ctx, e))
	}
	write(schemas.AnalysisSubmitted{Submission: sub, Attempt: 1})
	ts.Check(b.Artifacts().Keep(ctx, sub.Sample.SHA256))
	a := schemas.Artifact{Kind: schemas.KindSample, SHA256: sub.Sample.SHA256, Size: sub.Sample.Size}
	e, err := schemas.NewEvent(sub.Tenant, sub.ID, a.ID(sub.ID), time.Now(), schemas.OriginHost, a)
	ts.Check(err)
	ts.Check(b.PublishArtifact(ctx, e, &a))
	write(schemas.StartAnalysis{})
	ts.Check(job.Done(ctx))
	write(schemas.AnalysisCompleted{})
}
