// SPDX-License-Identifier: Apache-2.0

//go:build vm

package faults_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/petri-sandbox/petri/bus"
	"github.com/petri-sandbox/petri/bus/faults"
)

// TestUpgrade has a data directory served by an earlier nats-server, then by ours,
// by the earlier one again, and by ours at last, while writers and analyzers live
// on: an upgrade, its rollback, and the upgrade again.
func TestUpgrade(t *testing.T) {
	base := t.TempDir()
	dir, old := filepath.Join(base, "data"), filepath.Join(base, "oldserver")
	build := exec.Command("go", "build", "-trimpath", "-o", old, ".")
	build.Dir = filepath.Join("testdata", "oldserver")
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-mod=readonly", "GOWORK=off")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the earlier server: %v (make setup fetches its module)\n%s", err, out)
	}
	w := single(t, dir) // ours makes the directory, and the address that all know
	version := func(b *bus.Bus) string { return b.JetStream().Conn().ConnectedServerVersion() }
	ours := version(w.b)
	earlier := func(int) *process {
		cmd := exec.Command(old, dir, strings.TrimPrefix(w.addr.URL, "nats://"))
		p, err := launch(t, cmd, cmd.StdoutPipe, "ready", nil)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	addr := addressArg(w.addr)
	readers := []*kept{keep(t, 1, "clerk", addr, ""), keep(t, 1, "analyzer", addr, "count", "0"), keep(t, 1, "analyzer", addr, "nest", "0")}
	var served []string
	var total faults.Figures
	l := publishing(t, w, 2, func(l *ledger) {
		for i, next := range []func(int) *process{earlier, w.restart, earlier, w.restart} {
			address, err := os.ReadFile(filepath.Join(dir, "nats.json"))
			if err != nil {
				t.Fatal(err)
			}
			w.servers[0].end(t)
			// Who lives on has the address, which an end takes away.
			if err := os.WriteFile(filepath.Join(dir, "nats.json"), address, 0o600); err != nil {
				t.Fatal(err)
			}
			w.servers[0] = next(0)
			within(t, 4*time.Minute, "the writers are connected again", w.b.JetStream().Conn().IsConnected)
			v := version(w.b)
			if (v == ours) != (i%2 == 1) {
				t.Fatalf("server %d has version %s, and ours %s", i, v, ours)
			}
			served = append(served, v)
			l.more(t, 300, 4*time.Minute)
			f, done := stream{b: w.b, analyzers: []string{"count", "nest"}, sample: func(n int) string { return fmt.Sprint("sample ", i, " ", n) }}.flow(t, rounds(3, 20))
			if done < rounds(3, 20) {
				t.Errorf("%d analyses were completed on %s", done, v)
			}
			total = total.Add(f)
		}
	})
	for _, r := range readers { // before the last server goes
		r.stop()
	}
	f, err := faults.Audit(t.Context(), w.b.JetStream(), &l.Books)
	if err != nil {
		t.Fatal(err)
	}
	total = total.Add(f)
	total.Note = fmt.Sprintf("nats-server %s, %s", strings.Join(served, ", "), l.pause())
	total.Report(t)
}
