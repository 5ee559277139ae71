// SPDX-License-Identifier: Apache-2.0

//go:build vm

package qemu_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/petri-sandbox/petri/sandboxd/machine"
	"github.com/petri-sandbox/petri/sandboxd/machine/machinetest"
	"github.com/petri-sandbox/petri/schemas"
)

// hostile runs a sample as the product does, traced, if the guest can.
func hostile(t *testing.T, program string, args ...string) *guest {
	t.Helper()
	g, _ := poweron(t, machinetest.WarmConfig(t), machinetest.Identity(1))
	r := machinetest.Command(t, machinetest.Program(t, program), args...)
	r.Trace = g.traced(t)
	g.run(program, r)
	return g
}

// alive checks that the agent answers, and can still start something.
func (g *guest) alive() {
	g.t.Helper()
	begin := time.Now()
	if got := g.sh("echo alive"); got != "alive" {
		g.t.Fatalf("guest says %q", got)
	}
	g.t.Logf("answered in %v", time.Since(begin).Round(time.Millisecond))
}

// outOfMemory is the fault of a sample that its memory limit ended.
const outOfMemory = "memory limit"

// end shuts the guest down and checks that the sample's end was told, and of
// faults those that are expected and no others.
func (g *guest) end(faults ...string) schemas.SampleExited {
	g.t.Helper()
	begin := time.Now()
	g.shutdown()
	g.t.Logf("down in %v", time.Since(begin).Round(time.Millisecond))
	got := g.rec.Faults()
	for _, f := range got {
		expected := slices.ContainsFunc(faults, func(want string) bool { return strings.Contains(f, want) })
		if !expected && !strings.Contains(f, "no address") { // nobody serves DHCP here
			g.t.Errorf("fault: %s", f)
		}
	}
	for _, want := range faults {
		if !slices.ContainsFunc(got, func(f string) bool { return strings.Contains(f, want) }) {
			g.t.Errorf("no fault tells of %q: %q", want, got)
		}
	}
	return g.rec.AwaitExit(g.t, 0)
}

func TestForkBomb(t *testing.T) {
	g := hostile(t, "hostile", "bomb")
	g.rec.AwaitText(t, patience, schemas.SourceStdout, "forking")
	time.Sleep(2 * time.Second) // let it fork: that it has grown is no event
	g.alive()
	if n := g.sh("ls -d /proc/[0-9]* | wc -l"); n < "2" || len(n) > 3 {
		t.Errorf("%s processes, the limit is 500", n)
	}
	if e := g.end(); e.Reason != "killed" || e.Signal != "SIGKILL" {
		t.Errorf("exit %+v", e)
	}
}

func TestDiskFiller(t *testing.T) {
	g := hostile(t, "hostile", "fill")
	e := g.rec.AwaitExit(t, patience)
	g.rec.AwaitTree(t, patience)
	t.Logf("%+v %q", e, g.rec.Text(schemas.SourceStdout))
	// The disk lies in the guest's memory: the sample meets the end of either.
	full := strings.Contains(g.rec.Text(schemas.SourceStdout), "No space left on device")
	if killed := e.Reason == "killed" && e.Signal == "SIGKILL"; full == killed {
		t.Errorf("exit %+v, stdout %q", e, g.rec.Text(schemas.SourceStdout))
	}
	g.alive()
	ctx, cancel := context.WithTimeout(g.ctx, patience)
	defer cancel()
	sum, err := g.Collect(ctx, machine.Collect{MaxFile: 32 << 20, MaxFiles: 500, MaxTotal: 256 << 20, MaxList: 200_000})
	if err != nil {
		t.Fatal(err)
	}
	f := g.rec.Files()["/tmp/filler"]
	if sum.Listed != 1 || sum.Sent != 0 || f == nil || f.SHA256 == nil || f.Size < 32<<20 || f.Reason != "larger than 33554432 bytes" {
		t.Errorf("collected %+v: %+v", sum, f)
	}
	g.end(outOfMemory)
}

func TestMemoryHog(t *testing.T) {
	g := hostile(t, "hostile", "hog")
	if e := g.rec.AwaitExit(t, patience); e.Reason != "killed" || e.Signal != "SIGKILL" {
		t.Errorf("exit %+v", e)
	}
	g.alive()
	g.end(outOfMemory)
}

// TestMuchOutput prints many times what is kept, and what a stream's window
// takes: nobody waits for anybody.
func TestMuchOutput(t *testing.T) {
	const mib = 96
	g := hostile(t, "output", fmt.Sprint(mib))
	g.alive()
	begin := time.Now()
	e := g.rec.AwaitExit(t, 2*patience)
	g.rec.AwaitTree(t, patience)
	t.Logf("%+v after %v", e, time.Since(begin))
	if e.ExitCode == nil || *e.ExitCode != 0 {
		t.Errorf("exit %+v", e)
	}
	out := g.rec.AwaitEnd(t, patience, schemas.SourceStdout)
	if out.Bytes != 4<<20 || out.Cut != mib<<20-4<<20 {
		t.Errorf("stdout %+v", out)
	}
	g.end()
}

func TestKiller(t *testing.T) {
	g := hostile(t, "hostile", "killer")
	if e := g.rec.AwaitExit(t, patience); e.ExitCode == nil || *e.ExitCode != 0 {
		t.Errorf("exit %+v", e)
	}
	g.rec.AwaitTree(t, patience)
	if out := g.rec.Text(schemas.SourceStdout); out != "killed\n" {
		t.Errorf("stdout %q", out)
	}
	g.alive()
	g.end()
}

// TestSilent is the sample that closes its output and sleeps.
func TestSilent(t *testing.T) {
	g := hostile(t, "ends", "sleep")
	g.rec.AwaitEnd(t, patience, schemas.SourceStdout)
	g.rec.AwaitEnd(t, patience, schemas.SourceStderr)
	g.alive()
	if e := g.end(); e.Reason != "killed" || e.Signal != "SIGKILL" {
		t.Errorf("exit %+v", e)
	}
}

// TestManyFiles drops thousands of files: the first 500 are sent, and of the
// others it is known what they are. Each takes a page of the guest's memory and
// two kilobytes of the kernel's, so that the guest has no room for a hundred
// thousand: there the sample meets the end, and the files that it had made are
// told.
func TestManyFiles(t *testing.T) {
	t.Run("enough_room", func(t *testing.T) { manyFiles(t, 8000, 8000) })
	t.Run("no_room", func(t *testing.T) { manyFiles(t, 100_000, 10_000) })
}

// manyFiles makes files, and expects at least so many of them.
func manyFiles(t *testing.T, all, least int) {
	g, _ := poweron(t, machinetest.WarmConfig(t), machinetest.Identity(1))
	begin := time.Now()
	// Untraced: three calls a file are not the point here.
	g.run("hostile", machinetest.Command(t, machinetest.Program(t, "hostile"), "files", fmt.Sprint(all)))
	e := g.rec.AwaitExit(t, 2*patience)
	out := g.rec.Text(schemas.SourceStdout)
	t.Logf("%+v %q in %v", e, out, time.Since(begin).Round(time.Millisecond))
	done := e.ExitCode != nil && *e.ExitCode == 0
	if all == least && !done || e.ExitCode == nil && e.Signal != "SIGKILL" || e.ExitCode != nil && !done && !strings.Contains(out, "No space left") {
		t.Errorf("exit %+v, %q", e, out)
	}
	g.alive()
	begin = time.Now()
	ctx, cancel := context.WithTimeout(g.ctx, 2*patience)
	defer cancel()
	sum, err := g.Collect(ctx, machine.Collect{MaxFile: 32 << 20, MaxFiles: 500, MaxTotal: 256 << 20, MaxList: 200_000})
	t.Logf("%+v %v in %v", sum, err, time.Since(begin).Round(time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
	got := g.rec.Files()
	if sum.Listed < least || sum.Listed != len(got) || sum.Sent != 500 || sum.Omitted != 0 {
		t.Errorf("collected %+v, %d came", sum, len(got))
	}
	for _, i := range []int{0, 499, 500, least / 2, least - 1} {
		f := got[fmt.Sprintf("/var/f%03d/%05d", i/1000, i)]
		text := fmt.Sprintf("file %d\n", i)
		if f == nil || f.SHA256 == nil || *f.SHA256 != schemas.Sum([]byte(text)) || f.Stored != (i < 500) {
			t.Errorf("file %d is told as %+v", i, f)
			continue
		}
		if f.Stored && string(f.Data) != text || !f.Stored && f.Reason != "more than 500 files" {
			t.Errorf("file %d: %q, %q", i, f.Data, f.Reason)
		}
	}
	if e.Signal == "SIGKILL" {
		g.end(outOfMemory)
	} else {
		g.end()
	}
}
