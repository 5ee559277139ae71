// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"strconv"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/petri-sandbox/petri/analyzers"
	"github.com/petri-sandbox/petri/analyzers/all"
	"github.com/petri-sandbox/petri/bus"
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
			// --data and --cache for those who are root.
			e.Setenv("D", e.WorkDir+"/petri")
			err := writeRecorded("completed", e.WorkDir+"/recorded.petri")
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
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"exits": exits, "publish": publish},
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
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	b, err := bus.Connect(ctx, a, "script")
	ts.Check(err)
	defer b.Close()
	_, err = b.JetStream().Publish(ctx, args[0], []byte(args[1]))
	ts.Check(err)
}
