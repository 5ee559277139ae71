// SPDX-License-Identifier: Apache-2.0

package bus_test

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/petri-sandbox/petri/bus"
	"github.com/petri-sandbox/petri/schemas"
)

// failedVariable makes the test program the child of [TestFailed].
const failedVariable = "PETRI_TEST_FAILED"

// TestFailed has a server whose disk takes no more: files of a child process
// may not grow beyond a limit. nats-server tells of it in its log alone, in
// words that its next version may change.
func TestFailed(t *testing.T) {
	t.Parallel()
	if dir := os.Getenv(failedVariable); dir != "" {
		failedChild(t, dir)
		return
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestFailed$", "-test.v")
	cmd.Env = append(os.Environ(), failedVariable+"="+t.TempDir())
	out, err := cmd.CombinedOutput()
	said := false
	for s := bufio.NewScanner(strings.NewReader(string(out))); s.Scan(); {
		said = said || strings.HasPrefix(s.Text(), "the server has failed: ")
	}
	if err != nil || !said {
		t.Errorf("%v, %s", err, out)
	}
}

func failedChild(t *testing.T, dir string) {
	s, err := bus.StartServer(dir, bus.ServerOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	b, err := s.Connect(t.Context(), "test")
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if err := b.Reconcile(t.Context(), bus.Limits{Log: 1 << 30, Store: 1 << 30}); err != nil {
		t.Fatal(err)
	}
	signal.Ignore(syscall.SIGXFSZ) // then a write gives EFBIG
	limit := unix.Rlimit{Cur: 64 << 10, Max: unix.RLIM_INFINITY}
	if err := unix.Prlimit(0, unix.RLIMIT_FSIZE, &limit, nil); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	a := newAnalysis(t, b)
	go func() {
		for i := range 100 {
			e, err := schemas.NewEvent("default", a.id, a.w.NextID(), time.Now(), schemas.OriginHost,
				schemas.AnalysisFailed{Reason: "x", Error: strings.Repeat("x", 4<<10+i)})
			if err != nil || a.w.Write(ctx, e) != nil {
				return
			}
		}
	}()
	select {
	case err := <-s.Failed():
		fmt.Println("\nthe server has failed:", err)
	case <-ctx.Done():
		t.Error("the server tells of no failure")
	}
}
