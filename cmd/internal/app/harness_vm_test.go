// SPDX-License-Identifier: Apache-2.0

//go:build vm

package app_test

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/petri-sandbox/petri/bus"
	"github.com/petri-sandbox/petri/sandboxd/image"
	"github.com/petri-sandbox/petri/schemas"
)

const root = "../../.."

// built is what build makes, once for all tests.
var built struct {
	sync.Mutex
	dir string
}

func init() {
	cleanUp = func() {
		if built.dir != "" {
			os.RemoveAll(built.dir)
		}
	}
}

// build makes petri and the guest's agent as the Makefile does, so that the
// guest's image is the one in the cache, and returns their directory.
func build(t testing.TB) string {
	t.Helper()
	built.Lock()
	defer built.Unlock()
	if built.dir != "" {
		return built.dir
	}
	bin, err := os.MkdirTemp("", "petri-test-")
	if err != nil {
		t.Fatal(err)
	}
	run(t, "go", "build", "-trimpath", "-o", bin+"/petri", root+"/cmd/petri")
	run(t, "go", "build", "-trimpath", "-ldflags=-s -w", "-o", bin+"/guestd-amd64", root+"/cmd/guestd")
	run(t, bin+"/petri", "--cache", cache(), "guest", "build", "amd64")
	built.dir = bin
	return bin
}

// program compiles one of the tester programs, or a source of the test's own.
func program(t testing.TB, source string) string {
	t.Helper()
	dir := t.TempDir()
	path := filepath.Join(root, "sandboxd/testdata/progs", source)
	if strings.Contains(source, "{") {
		path = dir + "/sample.c"
		if err := os.WriteFile(path, []byte(source), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	run(t, "gcc", "-static", "-O1", "-pthread", "-o", dir+"/sample", path)
	return dir + "/sample"
}

func cache() string { return cmp.Or(os.Getenv("PETRI_TEST_CACHE"), image.DefaultCache()) }

// run runs a command of a minute or two and returns what it prints.
func run(t testing.TB, name string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s%s(what is missing may be in: make setup)", name, strings.Join(args, " "), err, out, stderr.Bytes())
	}
	return string(out)
}

// up starts Petri on a data directory of its own, for as long as the test runs.
func up(t testing.TB, bin string, flags ...string) (bus.Address, string) {
	t.Helper()
	data := filepath.Join(t.TempDir(), "data")
	cmd := exec.Command(bin+"/petri", append([]string{"--data", data, "--cache", cache(), "up"}, flags...)...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	gone := make(chan error, 1)
	go func() { gone <- cmd.Wait() }()
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGINT)
		select {
		case err := <-gone:
			if err != nil {
				t.Errorf("petri up: %v", err)
			}
		case <-time.After(time.Minute):
			_ = cmd.Process.Kill()
			<-gone
			t.Error("petri up did not end within a minute of an interrupt")
		}
		if t.Failed() {
			t.Logf("petri up:\n%s", out.Bytes())
			logs, _ := filepath.Glob(filepath.Join(data, "log", "*.log"))
			for _, path := range logs {
				b, _ := os.ReadFile(path)
				t.Logf("%s:\n%s", filepath.Base(path), b[max(0, len(b)-8<<10):])
			}
		}
	})
	for end := time.Now().Add(2 * time.Minute); ; time.Sleep(100 * time.Millisecond) {
		addr, err := bus.ReadAddress(data)
		if err == nil {
			return addr, data
		}
		if !errors.Is(err, bus.ErrNotFound) || time.Now().After(end) {
			t.Fatalf("petri up is not there: %v", err)
		}
	}
}

// submit queues a program and returns its analysis.
func submit(t testing.TB, bin, data, path string) string {
	t.Helper()
	id := strings.TrimSpace(run(t, bin+"/petri", "--data", data, "submit", path))
	if err := schemas.CheckID(id); err != nil {
		t.Fatalf("petri submit: %v", err)
	}
	return id
}

// waitForEnding returns when the analysis has ended.
func waitForEnding(t testing.TB, b *bus.Bus, analysis string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	last := "none"
	err := b.Follow(ctx, schemas.DefaultTenant, analysis, 0, nil, func(e bus.Entry) error {
		if e.Event.Family() == "context" {
			last = e.Event.Name()
		}
		if e.Event.Family() == "context" && schemas.Ending(e.Event.Name()) {
			return bus.ErrStop
		}
		return nil
	})
	if err != nil {
		t.Fatalf("wait for the ending: %v (the last context event was %s)", err, last)
	}
}
