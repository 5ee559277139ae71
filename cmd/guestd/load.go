// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/petri-sandbox/petri/sandboxd/machine"
	"github.com/petri-sandbox/petri/schemas"
)

// runner is the image's own program that runs what the kernel does not exec: it
// loads the sample, says on descriptor 3 what came of that, and stays, so that
// the sample's threads and hooks have a process to be in.
const runner = "/usr/bin/perl"

// The runner's programs. What they say is "ok", "forced", or what failed.
const (
	// runLibrary calls dlopen(3), which runs the constructors.
	runLibrary = `use DynaLoader; open(S, ">&=3"); $h = DynaLoader::dl_load_file($ARGV[0], 1);` +
		`syswrite(S, $h ? "ok" : DynaLoader::dl_error()); close(S); exit(126) unless $h; sleep while 1`
	// runModule calls finit_module(2). One for another kernel is refused with
	// ENOEXEC before any of it runs, and then taken in without those checks:
	// MODULE_INIT_IGNORE_MODVERSIONS and MODULE_INIT_IGNORE_VERMAGIC.
	runModule = `open(S, ">&=3"); ($m, $n, @p) = @ARGV; open(M, "<", $m); $n += 0; $p = join(" ", @p);` +
		`$s = "ok"; if (syscall($n, fileno(M), $p, 0) != 0) { $s = "forced"; $s = $! + 0 if $! != 8 || syscall($n, fileno(M), $p, 3) != 0 }` +
		`syswrite(S, $s); close(S); exit(126) if $s =~ /^\d/; sleep while 1`
)

// runnerCommand is the command that runs r's sample, if it takes a runner.
func runnerCommand(r machine.Run) []string {
	switch r.Load {
	case schemas.HowMapped:
		return append([]string{runner, "-e", runLibrary, "--"}, r.Command...)
	case schemas.HowLoaded:
		argv := []string{runner, "-e", runModule, "--", r.Path, strconv.Itoa(unix.SYS_FINIT_MODULE)}
		return append(argv, r.Command[min(1, len(r.Command)):]...)
	}
	return nil
}

// load starts the runner, and returns when the sample runs in it. If it does not,
// nothing of the runner is left.
func (a *agent) load(r machine.Run, u user, out *console) (pid int, forced bool, err error) {
	said, status, err := os.Pipe()
	if err != nil {
		return 0, false, err
	}
	defer said.Close()
	run := r
	run.Command = runnerCommand(r)
	pid, err = a.start(run, u, out, status)
	status.Close()
	if err != nil {
		return 0, false, notExecuted(runner, err)
	}
	if forced, err = a.awaitLoad(r, said); err != nil {
		_ = os.WriteFile(filepath.Join(cgroupDir, cgroupName, "cgroup.kill"), []byte("1"), 0)
		var st syscall.WaitStatus
		_ = wait(pid, &st)
	}
	return pid, forced, err
}

// loadTime is how long a loading may take that shows no sign of the sample: less
// than the host waits for an answer.
const loadTime = 10 * time.Second

// awaitLoad returns when it is proven that the sample runs, or that it does not:
// by the runner's word, given before or after the sample had its turn, or because
// it is seen while its constructors or its init function run, which may never
// return.
func (a *agent) awaitLoad(r machine.Run, said *os.File) (forced bool, err error) {
	word := make(chan string, 1)
	go func() {
		b, _ := io.ReadAll(io.LimitReader(said, 4<<10))
		word <- string(b)
	}()
	limit := time.NewTimer(loadTime)
	defer limit.Stop()
	look := time.NewTicker(time.Millisecond)
	defer look.Stop()
	for {
		select {
		case s := <-word:
			return s == "forced", refusal(r, s)
		case <-look.C:
			if r.Load == schemas.HowMapped && a.box.maps(r.Path) {
				return false, nil
			}
		case <-limit.C:
			if r.Load == schemas.HowLoaded && loading() {
				return false, nil
			}
			return false, &machine.NotExecuted{Reason: fmt.Sprintf("the runner had not loaded it after %s", loadTime)}
		}
	}
}

// refusal is why the sample does not run, in the runner's words.
func refusal(r machine.Run, s string) error {
	if s == "ok" || s == "forced" {
		return nil
	}
	n, err := strconv.Atoi(s)
	switch {
	case s == "":
		return &machine.NotExecuted{Reason: "the runner ended before it had loaded it"}
	case r.Load == schemas.HowLoaded && err == nil:
		return &machine.NotExecuted{
			Reason: fmt.Sprintf("the kernel does not keep the module: %v (if it has no other reason, its init function said so)", unix.Errno(n)),
			Errno:  unix.ErrnoName(unix.Errno(n)),
		}
	}
	return &machine.NotExecuted{Reason: "the loader refuses it: " + printable(strings.ToValidUTF8(s, "\ufffd"))}
}

// maps reports whether a process of the sample's has the file mapped, to be
// executed.
func (c *container) maps(path string) bool {
	pids, err := os.ReadFile(filepath.Join(cgroupDir, cgroupName, "cgroup.procs"))
	if err != nil {
		return false
	}
	for _, pid := range strings.Fields(string(pids)) {
		if b, err := os.ReadFile("/proc/" + pid + "/maps"); err == nil && mapsFile(b, path) {
			return true
		}
	}
	return false
}

// mapsFile looks for an executable mapping of path in a process' maps (proc(5)).
func mapsFile(maps []byte, path string) bool {
	lines := bufio.NewScanner(bytes.NewReader(maps))
	for lines.Scan() {
		f := strings.SplitN(lines.Text(), " ", 3)
		if len(f) == 3 && len(f[1]) == 4 && f[1][2] == 'x' && strings.HasSuffix(f[2], " "+path) {
			return true
		}
	}
	return false
}

// loading reports whether the kernel is in the middle of taking in a module.
func loading() bool {
	b, err := os.ReadFile("/proc/modules")
	return err == nil && strings.Contains(string(b), " Loading ")
}
