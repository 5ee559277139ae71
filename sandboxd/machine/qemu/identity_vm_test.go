// SPDX-License-Identifier: Apache-2.0

//go:build vm

package qemu_test

import (
	"path"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/petri-sandbox/petri/sandboxd/machine"
	"github.com/petri-sandbox/petri/sandboxd/machine/machinetest"
	"github.com/petri-sandbox/petri/schemas"
)

// identityScript prints everything that must differ between two machines of
// one template.
const identityScript = `
echo hostname $(hostname)
echo hosts $(tail -1 /etc/hosts)
echo machine-id $(cat /etc/machine-id)
echo boot-id $(cat /proc/sys/kernel/random/boot_id)
echo uuid $(cat /proc/sys/kernel/random/uuid)
echo random $(head -c 16 /dev/urandom | od -An -tx1)
echo mac $(cat /sys/class/net/eth0/address)
echo uptime $(cut -d. -f1 /proc/uptime)
echo btime $(awk '$1 == "btime" {print $2}' /proc/stat)
echo pid $$
echo now $(date +%s)
echo proc $(date -r /proc +%s)
echo sys $(date -r /sys +%s)
echo pts $(date -r /dev/pts +%s)
echo self $(stat -c %Y /proc/self)
echo root $(date -r / +%s)
`

// TestIdentity restores one template three times, the last time to stand by for
// a while, and compares what a sample can see.
func TestIdentity(t *testing.T) {
	cfg := machinetest.WarmConfig(t)
	cfg.Untraced = true
	var seen []map[string]string
	for n := 1; n <= 3; n++ {
		id := machinetest.Identity(n)
		// The second machine's clock is a day ahead: the guest keeps no clock of
		// its own.
		id.Time = time.Now().Add(time.Duration(n-1) * 24 * time.Hour)
		begin := time.Now()
		var g *guest
		var boot machine.Boot
		if n == 3 {
			g, boot = fromStandby(t, cfg, id)
		} else {
			g, boot = poweron(t, cfg, id)
		}
		if boot.Machine.Start != "warm" || boot.Pooled != (n == 3) {
			t.Fatalf("started %s, pooled %v: %s", boot.Machine.Start, boot.Pooled, boot.Fallback)
		}
		if boot.Ready.Identity != id.Identity {
			t.Errorf("identity %+v, want %+v", boot.Ready.Identity, id.Identity)
		}
		for g.sh("cat /sys/class/net/eth0/address") != id.MAC {
			if time.Since(begin) > patience {
				t.Fatal("the guest does not take its MAC on")
			}
		}
		facts := map[string]string{}
		for _, line := range strings.Split(g.sh(identityScript), "\n") {
			k, v, _ := strings.Cut(line, " ")
			facts[k] = v
		}
		since := time.Since(begin) + time.Second
		number := func(key string) int64 {
			v, err := strconv.ParseInt(facts[key], 10, 64)
			if err != nil {
				t.Errorf("%s is %q", key, facts[key])
			}
			return v
		}
		around := func(key string, got, want int64) {
			if got < want-1 || got > want+int64(since/time.Second)+1 {
				t.Errorf("%s is %d, want %d", key, got, want)
			}
		}
		around("uptime", number("uptime"), int64(id.Uptime.D()/time.Second))
		around("now", number("now"), id.Time.Unix())
		// When the machine says that it booted fits to its uptime and clock.
		around("now less uptime", number("now")-number("uptime"), id.Time.Unix()-int64(id.Uptime.D()/time.Second))
		if got := number("pid"); got < int64(id.FirstPID) || got > int64(id.FirstPID)+100 {
			t.Errorf("process numbers begin at %d, want %d", got, id.FirstPID)
		}
		for key, want := range map[string]string{"hostname": id.Hostname, "machine-id": id.MachineID, "mac": id.MAC, "hosts": "127.0.1.1 " + id.Hostname} {
			if got := strings.Join(strings.Fields(facts[key]), " "); got != want {
				t.Errorf("%s is %q, want %q", key, got, want)
			}
		}
		t.Logf("machine %d: %v", n, facts)
		seen = append(seen, facts)
		if err := g.Poweroff(g.ctx); err != nil {
			t.Fatal(err)
		}
	}
	for key := range seen[0] {
		a, b, c := seen[0][key], seen[1][key], seen[2][key]
		if a == b || a == c || b == c || a == "" {
			t.Errorf("%s is %q, %q, %q in three machines", key, a, b, c)
		}
	}
}

// TestUnseen lets a sample look for the agent.
func TestUnseen(t *testing.T) {
	cfg := machinetest.WarmConfig(t)
	g, _ := poweron(t, cfg, machinetest.Identity(1))
	r := machinetest.Command(t, machinetest.Program(t, "look"))
	r.Trace = g.traced(t)
	started := g.run("look", r)
	g.rec.AwaitTree(t, patience)
	g.rec.AwaitEnd(t, patience, schemas.SourceStdout)
	out := g.rec.Text(schemas.SourceStdout)
	if !strings.HasSuffix(out, "done\n") {
		t.Fatalf("it did not finish: %q", out[max(0, len(out)-500):])
	}
	for _, word := range []string{"guestd", "petri", "agent", "machinetest", "vport", "sandbox"} {
		for _, line := range strings.Split(out, "\n") {
			// That there is a port is to be seen in /sys; its name is empty.
			if strings.Contains(strings.ToLower(line), word) && !strings.HasPrefix(line, "/sys/class/virtio-ports/") {
				t.Errorf("it finds %q: %s", word, line)
			}
		}
	}
	facts := map[string][]string{}
	for _, line := range strings.Split(out, "\n") {
		k, v, _ := strings.Cut(line, ": ")
		facts[k] = append(facts[k], v)
	}
	self := strconv.Itoa(started.PID)
	want := map[string][]string{
		"process": {"1", self},
		"my environ": {"HOME=/root", "LANG=C.UTF-8", "LOGNAME=root",
			"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "SHELL=/bin/sh", "USER=root"},
		"/proc/1/comm":                     {"init"},
		"/proc/1/cmdline":                  {"init       "},
		"/proc/1/environ":                  {"HOME=/ TERM=linux PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin "},
		"/proc/1/exe":                      {"/usr/bin/busybox"},
		"/proc/1/oom_score_adj":            {"0"},
		"/proc/" + self + "/oom_score_adj": {"0"},
		"/proc/1/cwd":                      {"/"},
		"/proc/1/root":                     {"/"},
	}
	for key, lines := range want {
		if !slices.Equal(facts[key], lines) {
			t.Errorf("%s is %q, want %q", key, facts[key], lines)
		}
	}
	// The agent's own processes have no parent or tracer that shows; the filter
	// that holds calls does.
	shown := map[string]string{"TracerPid": "0", "PPid": "0", "NoNewPrivs": "0", "Seccomp": "2"}
	for _, pid := range []string{"1", self} {
		for _, line := range facts["/proc/"+pid+"/status"] {
			k, v, _ := strings.Cut(line, ":\t")
			if want, ok := shown[k]; ok && v != want {
				t.Errorf("process %s has %s %s, want %s", pid, k, v, want)
			}
		}
	}
	for key, lines := range facts {
		switch {
		case strings.HasPrefix(key, "/proc/1/fd/"):
			if !slices.Equal(lines, []string{"/dev/null"}) {
				t.Errorf("process 1 holds %s: %q", key, lines)
			}
		case strings.HasPrefix(key, "/proc/self/fd/"):
			switch fd := path.Base(key); {
			case fd == "0" && lines[0] == "/dev/null", (fd == "1" || fd == "2") && strings.HasPrefix(lines[0], "pipe:"):
			case strings.HasPrefix(lines[0], "/proc"): // the program's own look at its descriptors
			default:
				t.Errorf("the sample holds %s: %q", key, lines)
			}
		case strings.HasPrefix(key, "/sys/class/virtio-ports/") && strings.HasSuffix(key, "/name"):
			if !slices.Equal(lines, []string{""}) && !strings.HasPrefix(lines[0], "unreadable") {
				t.Errorf("the port has a name: %q", lines)
			}
		}
	}
	// Of the kernel's mounts, those of a small device's overlay; nothing of the
	// agent's root.
	for _, line := range facts["/proc/1/mountinfo"] {
		f := strings.Fields(line)
		if len(f) < 5 || !slices.Contains([]string{"/", "/proc", "/sys", "/dev/pts"}, f[4]) {
			t.Errorf("mount %q", line)
		}
	}
	var devices []string
	for key := range facts {
		if strings.HasPrefix(key, "/dev/") {
			devices = append(devices, strings.TrimPrefix(key, "/dev/"))
		}
	}
	slices.Sort(devices)
	known := []string{"fd", "full", "null", "ptmx", "pts", "pts/ptmx", "random", "shm", "stderr", "stdin", "stdout", "tty", "urandom", "zero"}
	if !slices.Equal(devices, known) {
		t.Errorf("devices %q, want %q", devices, known)
	}
	t.Logf("%d lines", strings.Count(out, "\n"))
}

// traced reports whether this guest has a tracer.
func (g *guest) traced(t *testing.T) bool {
	t.Helper()
	return machinetest.WarmConfig(t).Template.Hello.Tracer.Backend == "ebpf"
}
