// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/petri-sandbox/petri/bus"
	"github.com/petri-sandbox/petri/schemas"
)

// flaky is a source whose watch does what a test says.
type flaky struct {
	watch func(ctx context.Context, fn func(schemas.RunState) error) error
	lost  atomic.Int64 // when, in nanoseconds; 0: the server is there
}

func (f *flaky) WatchRun(ctx context.Context, _ string, fn func(schemas.RunState) error) error {
	return f.watch(ctx, fn)
}

func (f *flaky) Away() time.Duration {
	lost := f.lost.Load()
	if lost == 0 {
		return 0
	}
	return time.Since(time.Unix(0, lost))
}

func (f *flaky) Silent() time.Duration { return f.Away() }

// followFlaky runs followRun and returns what it has told, and how long it took.
func followFlaky(t *testing.T, f *flaky) (told string, took time.Duration, last schemas.RunState, err error) {
	t.Helper()
	out, err := os.Create(filepath.Join(t.TempDir(), "out"))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	pr, begin := newProgress(out), time.Now()
	last, err = followRun(t.Context(), f, "r-1", pr)
	took = time.Since(begin)
	pr.done()
	b, rerr := os.ReadFile(out.Name())
	if rerr != nil {
		t.Fatal(rerr)
	}
	return string(b), took, last, err
}

// TestFollowDenied gives up at once where asking again cannot help.
func TestFollowDenied(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, took, _, err := followFlaky(t, &flaky{watch: func(context.Context, func(schemas.RunState) error) error {
			return fmt.Errorf("read RUNS: %w", bus.ErrDenied)
		}})
		if !errors.Is(err, bus.ErrDenied) || took > 0 {
			t.Errorf("after %s: %v", took, err)
		}
	})
}

// TestFollowAway loses the server for good: it is said, and there is an end.
func TestFollowAway(t *testing.T) {
	for name, watch := range map[string]func(ctx context.Context, fn func(schemas.RunState) error) error{
		"silent": func(ctx context.Context, fn func(schemas.RunState) error) error {
			_ = fn(schemas.RunState{Run: "r-1", State: schemas.RunRunning, Total: 9})
			<-ctx.Done()
			return ctx.Err()
		},
		"refusing": func(context.Context, func(schemas.RunState) error) error { return errors.New("no leader") },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := &flaky{watch: watch}
				want := "no leader"
				if name == "silent" {
					f.lost.Store(time.Now().UnixNano())
					want = "the server has been away for 2m0s"
				}
				told, took, _, err := followFlaky(t, f)
				if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "petri runs show r-1") {
					t.Errorf("it gave up with: %v", err)
				}
				if took < busAway || took > busAway+5*time.Second {
					t.Errorf("it gave up after %s", took)
				}
				if !strings.Contains(told, "away; it is waited for") && !strings.Contains(told, "no state of the run is to be had") {
					t.Errorf("it told only:\n%s", told)
				}
			})
		})
	}
}

// TestFollowBack loses the server twice, for less than there is patience, and
// sees the run end.
func TestFollowBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &flaky{}
		tries := 0
		f.watch = func(_ context.Context, fn func(schemas.RunState) error) error {
			tries++
			if tries == 3 {
				return fn(schemas.RunState{Run: "r-1", State: schemas.RunDone})
			}
			_ = fn(schemas.RunState{Run: "r-1", State: schemas.RunRunning, Total: 9})
			f.lost.Store(time.Now().UnixNano())
			time.Sleep(busAway - 10*time.Second)
			f.lost.Store(0)
			time.Sleep(2 * time.Second)
			return errors.New("cut off")
		}
		told, _, last, err := followFlaky(t, f)
		if err != nil || last.State != schemas.RunDone {
			t.Errorf("it ended with %v, %+v", err, last)
		}
		if strings.Count(told, "away; it is waited for") != 2 || strings.Count(told, " back") != 2 {
			t.Errorf("it told:\n%s", told)
		}
	})
}
