// SPDX-License-Identifier: Apache-2.0

package sysno_test

import (
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/petri-sandbox/petri/schemas/sysno"
)

// all are the ABIs, which are numbered from 1.
func all() []sysno.ABI {
	var out []sysno.ABI
	for a := sysno.ABI(1); a.Valid(); a++ {
		out = append(out, a)
	}
	return out
}

// TestKnownCalls compares with numbers of the kernel's own tables.
func TestKnownCalls(t *testing.T) {
	tests := []struct {
		abi    sysno.ABI
		number uint64
		name   string
	}{
		{sysno.AMD64, 0, "read"}, {sysno.AMD64, 59, "execve"}, {sysno.AMD64, 257, "openat"}, {sysno.AMD64, 262, "newfstatat"}, {sysno.AMD64, 435, "clone3"},
		{sysno.I386, 11, "execve"}, {sysno.I386, 102, "socketcall"}, {sysno.I386, 362, "connect"}, {sysno.I386, 252, "exit_group"}, {sysno.I386, 192, "mmap2"},
		{sysno.X32, sysno.X32Bit | 257, "openat"}, {sysno.X32, sysno.X32Bit | 520, "execve"}, {sysno.X32, sysno.X32Bit | 547, "pwritev2"},
		{sysno.ARM64, 221, "execve"}, {sysno.ARM64, 203, "connect"}, {sysno.ARM, 11, "execve"}, {sysno.ARM, 283, "connect"},
		{sysno.MIPSO32, 4011, "execve"}, {sysno.MIPSN64, 5057, "execve"}, {sysno.PPC, 11, "execve"}, {sysno.PPC64, 328, "connect"},
		{sysno.RISCV64, 221, "execve"}, {sysno.S390X, 11, "execve"}, {sysno.SPARC64, 59, "execve"}, {sysno.LOONG64, 221, "execve"},
	}
	for _, test := range tests {
		if got, _ := test.abi.Name(test.number); got != test.name {
			t.Errorf("%v %d is %q, want %q", test.abi, test.number, got, test.name)
		}
		if got, ok := test.abi.Number(test.name); !ok || got != test.number {
			t.Errorf("%v %s is %d, want %d", test.abi, test.name, got, test.number)
		}
	}
	for _, n := range []uint64{99999, 1 << 63, 512, sysno.X32Bit, 3999} {
		if name, ok := sysno.AMD64.Name(n); ok {
			t.Errorf("amd64 has a call %d, %q", n, name)
		}
	}
}

// TestTables checks every table against itself.
func TestTables(t *testing.T) {
	if got := len(all()); got != 13 {
		t.Errorf("%d ABIs, want 13", got)
	}
	for _, a := range all() {
		if back, ok := sysno.ParseABI(a.String()); !ok || back != a {
			t.Errorf("ABI %v is not found by its name", a)
		}
		first, end := a.Numbers()
		calls := 0
		for n := first; n < end; n++ {
			name, ok := a.Name(n)
			if !ok {
				continue
			}
			calls++
			c := sysno.Lookup(a, n, 0)
			if c.Name != name || len(c.Args) > 6 {
				t.Errorf("%v %d: %+v, want name %q", a, n, c, name)
			}
			spec := sysno.CaptureOf(a, n, 0)
			for i, g := range c.Args {
				if (g.Type == sysno.Path || g.Type == sysno.Str) && spec.Kind[i] != sysno.CaptureString {
					t.Errorf("%v %s: argument %d is a string and captured as %d", a, name, i, spec.Kind[i])
				}
			}
		}
		if calls < 250 {
			t.Errorf("%v has only %d calls", a, calls)
		}
		for _, name := range []string{"execve", "openat", "exit_group", "unlinkat", "ptrace", "finit_module"} {
			if _, ok := a.Number(name); !ok {
				t.Errorf("%v has no %s", a, name)
			}
		}
	}
}

func TestVariants(t *testing.T) {
	types := func(a sysno.ABI, name string) string {
		n, ok := a.Number(name)
		if !ok {
			t.Fatalf("%v has no %s", a, name)
		}
		return strconv.Itoa(len(sysno.Lookup(a, n, 0).Args))
	}
	for what, got := range map[string]string{
		"6": types(sysno.AMD64, "mmap"), "1": types(sysno.I386, "mmap"), "4": types(sysno.AMD64, "pread64"),
	} {
		if got != what {
			t.Errorf("%s arguments, want %s", got, what)
		}
	}
	if got := types(sysno.ARM, "pread64"); got != "6" {
		t.Errorf("pread64 of 32 bits has %s arguments, want 6", got)
	}
}

func TestMux(t *testing.T) {
	c := sysno.Lookup(sysno.I386, 102, 3)
	if c.Name != "connect" || !c.Entry {
		t.Errorf("socketcall 3 is %+v, want connect", c)
	}
	if c := sysno.Lookup(sysno.I386, 102, 9); c.Name != "send" {
		t.Errorf("socketcall 9 is %+v, want send", c)
	}
	for _, test := range []struct {
		number uint64
		mux    uint8
		want   string
	}{{102, 99, "socketcall_99"}, {102, 0, "socketcall"}, {11, 3, "execve_3"}, {100000, 3, "syscall_100000"}} {
		if got := sysno.Lookup(sysno.I386, test.number, test.mux).Name; got != test.want {
			t.Errorf("call %d.%d is %q, want %q", test.number, test.mux, got, test.want)
		}
	}
	for i := range uint8(sysno.Socketcalls) {
		n, _ := sysno.I386.Number("socketcall")
		if c := sysno.Lookup(sysno.I386, n, i+1); strings.Contains(c.Name, "_") && c.Name != "accept4" {
			t.Errorf("socketcall %d has no name: %q", i+1, c.Name)
		}
	}
}

func TestValues(t *testing.T) {
	check := func(got, want string) {
		t.Helper()
		if d := cmp.Diff(want, got); d != "" {
			t.Error(d)
		}
	}
	a := sysno.AMD64
	check(a.Errno(-2), "ENOENT")
	check(a.Errno(-11), "EAGAIN")
	check(a.Errno(-512), "ERESTARTSYS")
	check(a.Errno(-4095), "E4095")
	check(a.Errno(-4096), "")
	check(a.Errno(5), "")
	check(sysno.MIPSO32.Errno(-145), "ETIMEDOUT")
	check(sysno.SPARC64.Errno(-60), "ETIMEDOUT")
	check(a.Signal(9), "SIGKILL")
	check(a.Signal(34), "SIGRT_2")
	check(a.Signal(-1), "SIG-1")
	check(sysno.MIPSO32.Signal(10), "SIGBUS")
	check(a.FlagNames(sysno.SetOpen, 0x241), "O_WRONLY|O_CREAT|O_TRUNC")
	check(a.FlagNames(sysno.SetOpen, 0), "O_RDONLY")
	check(a.FlagNames(sysno.SetOpen, 0x101002), "O_RDWR|O_SYNC")
	check(a.FlagNames(sysno.SetOpen, 0x410002), "O_RDWR|O_TMPFILE")
	check(a.FlagNames(sysno.SetOpen, 0x98800), "O_RDONLY|O_NONBLOCK|O_LARGEFILE|O_DIRECTORY|O_CLOEXEC")
	check(sysno.ARM.FlagNames(sysno.SetOpen, 0x24000), "O_RDONLY|O_LARGEFILE|O_DIRECTORY")
	check(a.FlagNames(sysno.SetProt, 7), "PROT_READ|PROT_WRITE|PROT_EXEC")
	check(a.FlagNames(sysno.SetProt, 0), "0")
	check(a.FlagNames(sysno.SetMap, 0x22), "MAP_PRIVATE|MAP_ANONYMOUS")
	check(sysno.MIPSO32.FlagNames(sysno.SetMap, 0x802), "MAP_PRIVATE|MAP_ANONYMOUS")
	check(a.FlagNames(sysno.SetClone, 0x3d0f00), "CLONE_VM|CLONE_FS|CLONE_FILES|CLONE_SIGHAND|CLONE_THREAD|CLONE_SYSVSEM|CLONE_SETTLS|CLONE_PARENT_SETTID|CLONE_CHILD_CLEARTID")
	check(a.FlagNames(sysno.SetClone, 17), "SIGCHLD")
	check(a.FlagNames(sysno.SetSock, 0x80801), "SOCK_STREAM|SOCK_NONBLOCK|SOCK_CLOEXEC")
	check(a.FlagNames(sysno.SetSock, 0xf), "0xf")
	check(sysno.MIPSO32.FlagNames(sysno.SetSock, 2), "SOCK_STREAM")
	check(a.Enum(sysno.SetAf, 10), "AF_INET6")
	check(a.Enum(sysno.SetAf, 99), "0x63")
	check(a.Enum(sysno.SetReboot, 0x4321fedc), "LINUX_REBOOT_CMD_POWER_OFF")
	check(sysno.ABI(99).Errno(-2), "ENOENT")
	check(sysno.ABI(99).String(), "abi_99")
	check(a.FlagNames(sysno.Set(250), 3), "3")
	if got := sysno.ARM.Value(sysno.SetOpen, "O_DIRECTORY"); got != 0x4000 {
		t.Errorf("O_DIRECTORY of arm is %#x", got)
	}
}

// FuzzValues checks that nothing of a value is lost when it is named: the
// names' values, or-ed, give it back.
func FuzzValues(f *testing.F) {
	f.Add(uint16(1), uint8(1), uint64(0x241), int64(-2))
	f.Add(uint16(6), uint8(12), uint64(1<<63), int64(-600))
	f.Fuzz(func(t *testing.T, abi uint16, set uint8, v uint64, result int64) {
		a, s := sysno.ABI(abi), sysno.Set(set)
		back := uint64(0)
		for _, name := range strings.Split(a.FlagNames(s, v), "|") {
			n, err := strconv.ParseUint(name, 0, 64)
			if err != nil {
				n = a.Value(s, name)
				if strings.HasPrefix(name, "SIG") && n == 0 {
					n = v & 0xff
				}
			}
			back |= n
		}
		if back != v {
			t.Errorf("%v %d: %#x became %q, which is %#x", a, s, v, a.FlagNames(s, v), back)
		}
		if (a.Errno(result) != "") != (result < 0 && result >= -sysno.MaxErrno) {
			t.Errorf("result %d has errno %q", result, a.Errno(result))
		}
		if c := sysno.Lookup(a, v, uint8(result)); c.Name == "" || len(c.Args) > 6 {
			t.Errorf("%v %d: %+v", a, v, c)
		}
		_, _, _ = a.Enum(s, v), a.Signal(int(result)), sysno.CaptureOf(a, v, uint8(result))
	})
}

// TestClasses: calls are where people look for them, and what can do the most
// harm is in some class.
func TestClasses(t *testing.T) {
	for _, test := range []struct {
		call string
		want sysno.Class
	}{
		{"openat", sysno.ClassFile | sysno.ClassDesc},
		{"unlink", sysno.ClassFile},
		{"read", sysno.ClassDesc},
		{"execve", sysno.ClassFile | sysno.ClassProcess},
		{"kill", sysno.ClassProcess | sysno.ClassSignal},
		{"connect", sysno.ClassNetwork | sysno.ClassDesc},
		{"socketcall", sysno.ClassNetwork},
		{"mprotect", sysno.ClassMemory},
		{"init_module", sysno.ClassKernel},
		{"setuid", sysno.ClassUser},
		{"nanosleep", sysno.ClassTime},
		{"sched_yield", 0},
	} {
		if got, ok := sysno.ClassOf(test.call); !ok || got != test.want {
			t.Errorf("%s is of class %b (%v), want %b", test.call, got, ok, test.want)
		}
	}
	for _, name := range []string{"", "opennat"} {
		if c, ok := sysno.ClassOf(name); ok || c != 0 {
			t.Errorf("%q is a call of class %b", name, c)
		}
	}
	for i, name := range sysno.ClassNames() {
		if c, ok := sysno.ParseClass(name); !ok || c != 1<<i {
			t.Errorf("class %s is %b (%v)", name, c, ok)
		}
	}
	if _, ok := sysno.ParseClass("nothing"); ok {
		t.Error("there is a class nothing")
	}
}

// TestParseNames: what a value is called, it is read as again.
func TestParseNames(t *testing.T) {
	for _, a := range all() {
		for _, s := range []sysno.Set{sysno.SetOpen, sysno.SetClone, sysno.SetMap, sysno.SetProt, sysno.SetSock, sysno.SetAf, sysno.SetPtrace} {
			for _, v := range []uint64{0, 1, 2, 0o101, 0o2000000, 0o1102, 17, 0x80000, 0x1200011, 0xdeadbeef, 1 << 63} {
				for _, text := range []string{a.FlagNames(s, v), a.Enum(s, v)} {
					if got, ok := a.ParseNames(s, text); !ok || got != v {
						t.Errorf("%v: %#x is %s in set %d, which is read as %#x (%v)", a, v, text, s, got, ok)
					}
				}
			}
		}
		for n := range 129 {
			if got, ok := a.ParseSignal(a.Signal(n)); !ok || got != n {
				t.Errorf("%v: signal %d is %s, which is read as %d (%v)", a, n, a.Signal(n), got, ok)
			}
		}
		for _, n := range []int{1, 2, 11, 111, 512, 4000} {
			if got, ok := a.ParseErrno(a.Errno(int64(-n))); !ok || a.Errno(int64(-got)) != a.Errno(int64(-n)) {
				t.Errorf("%v: error %d is read as %d (%v)", a, n, got, ok)
			}
		}
	}
	for _, text := range []string{"", "O_NOTHING", "O_RDWR|", "SIGKILL"} {
		if v, ok := sysno.AMD64.ParseNames(sysno.SetOpen, text); ok {
			t.Errorf("%q is %#x", text, v)
		}
	}
}
