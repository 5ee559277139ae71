// SPDX-License-Identifier: Apache-2.0

package jail_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/petri-sandbox/petri/analyzers/internal/jail"
)

// attempts are what a taken-over child might try. Each says what came of it.
var attempts = map[string]func() error{
	"nothing": func() error { return nil },
	"open":    func() error { _, err := os.ReadFile("/etc/passwd"); return err },
	"create":  func() error { return os.WriteFile("x", []byte("x"), 0o600) },
	"tmp":     func() error { return os.WriteFile("/tmp/petri-jail-test", []byte("x"), 0o600) },
	"list":    func() error { _, err := os.ReadDir("/"); return err },
	"dial":    func() error { _, err := net.Dial("tcp", "127.0.0.1:1"); return err },
	"unix":    func() error { _, err := net.Dial("unix", "/var/run/docker.sock"); return err },
	"exec":    func() error { return exec.Command("/bin/true").Run() },
	"fork":    func() error { _, err := syscall.ForkExec("/bin/true", []string{"true"}, nil); return err },
	"kill":    func() error { return syscall.Kill(-1, syscall.SIGTERM) },
	"parent":  func() error { return syscall.Kill(os.Getppid(), 0) },
	"ptrace":  func() error { return syscall.PtraceAttach(1) },
	"root": func() error {
		err := syscall.Setuid(0)
		if errors.Is(err, syscall.EINVAL) {
			err = fs.ErrPermission // there is no root in the namespace
		}
		return err
	},
	"chroot":  func() error { return syscall.Chroot("/") },
	"mount":   func() error { return syscall.Mount("none", "/", "tmpfs", 0, "") },
	"unshare": func() error { return syscall.Unshare(syscall.CLONE_NEWUSER) },
	"limit":   func() error { return syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: 1000, Max: 1000}) },
	"threads": func() error { // must work: the collector needs them. With cgo, each has a stack of 8 MiB that counts
		done := make(chan int)
		for range 4 {
			go func() { runtime.LockOSThread(); time.Sleep(time.Millisecond); done <- 1 }()
		}
		for range 4 {
			<-done
		}
		runtime.GC()
		return nil
	},
	"memory": func() error { // a panic or worse
		var keep [][]byte
		for range 1024 {
			b := make([]byte, 1<<20)
			for i := range b {
				b[i] = 1
			}
			keep = append(keep, b)
		}
		return fmt.Errorf("got %d MiB", len(keep))
	},
	"cpu": func() error {
		for i := 0; i >= 0; i &= 7 { // for ever
		}
		return nil
	},
	"cat": func() error {
		out, err := exec.Command("/bin/cat", "/proc/version").CombinedOutput()
		if err == nil && !strings.Contains(string(out), "Linux") {
			return fmt.Errorf("cat said %q", out)
		}
		return err
	},
}

type report struct {
	Status jail.Status
	Fatal  string
	Err    string
	Denied bool // by permission
}

func TestMain(m *testing.M) {
	if len(os.Args) == 3 && os.Args[1] == "jail-child" {
		name, exec := strings.CutSuffix(os.Args[2], "+exec")
		var r report
		s, err := jail.Enter(jail.Limits{Memory: 64 << 20, CPU: time.Second, Files: 32, Exec: exec})
		r.Status = s
		if err != nil {
			r.Fatal = err.Error()
		} else if err := attempts[name](); err != nil {
			r.Err, r.Denied = err.Error(), errors.Is(err, fs.ErrPermission)
		}
		json.NewEncoder(os.Stdout).Encode(r)
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// unlessRoot skips a test of what a user may not have everywhere; root has it.
func unlessRoot(t *testing.T, format string, args ...any) {
	t.Helper()
	if os.Geteuid() == 0 {
		t.Fatalf(format, args...)
	}
	t.Skipf("SKIPPED: "+format, args...)
}

func child(t *testing.T, level jail.Level, attempt string) (report, *exec.Cmd, string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "jail-child", attempt)
	cmd.SysProcAttr = level.Attr(false)
	cmd.Env = jail.Env()
	cmd.Dir = t.TempDir()
	var stdout, stderr strings.Builder
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Start(); err != nil {
		unlessRoot(t, "%s are not permitted here: %v", level, err)
	}
	cmd.Wait()
	var r report
	json.Unmarshal([]byte(stdout.String()), &r)
	if r.Fatal != "" {
		t.Fatalf("enter: %s", r.Fatal)
	}
	return r, cmd, stderr.String()
}

func TestAttempts(t *testing.T) {
	for _, level := range jail.Levels() {
		t.Run(level.String(), func(t *testing.T) {
			first, cmd, stderr := child(t, level, "nothing")
			if !cmd.ProcessState.Success() || first.Err != "" {
				t.Fatalf("%v: %+v %s", cmd.ProcessState, first, stderr)
			}
			t.Logf("in force: %+v", first.Status)
			if os.Geteuid() == 0 && (first.Status.UID != jail.Nobody || !first.Status.Root) {
				t.Errorf("root was not given up: %+v", first.Status)
			}
			if !first.Status.Filter {
				unlessRoot(t, "no system-call filter here")
			}
			for _, name := range []string{"open", "create", "tmp", "list", "dial", "unix", "exec", "fork", "kill", "parent", "ptrace", "root", "chroot", "mount", "unshare", "limit"} {
				t.Run(name, func(t *testing.T) {
					r, cmd, stderr := child(t, level, name)
					if !r.Denied {
						t.Errorf("%v: %+v %s", cmd.ProcessState, r, stderr)
					}
				})
			}
			for _, name := range []string{"dial+exec", "ptrace+exec", "root+exec", "mount+exec", "unshare+exec", "kill+exec"} {
				t.Run(name, func(t *testing.T) {
					if r, cmd, stderr := child(t, level, name); !r.Denied {
						t.Errorf("%v: %+v %s", cmd.ProcessState, r, stderr)
					}
				})
			}
			for _, name := range []string{"threads", "threads+exec", "cat+exec"} {
				t.Run(name, func(t *testing.T) {
					if r, cmd, stderr := child(t, level, name); r.Err != "" || !cmd.ProcessState.Success() {
						t.Errorf("%v: %+v %s", cmd.ProcessState, r, stderr)
					}
				})
			}
			t.Run("memory", func(t *testing.T) {
				if !first.Status.Memory {
					t.Skip("SKIPPED: no memory limit under the race detector")
				}
				r, cmd, stderr := child(t, level, "memory")
				if r.Err != "" || cmd.ProcessState.Success() || !strings.Contains(stderr, "out of memory") && !strings.Contains(stderr, "cannot allocate memory") && !strings.Contains(stderr, "pthread_create failed") {
					t.Errorf("%v: %+v %.300s", cmd.ProcessState, r, stderr)
				}
			})
			t.Run("cpu", func(t *testing.T) {
				_, cmd, stderr := child(t, level, "cpu")
				if cmd.ProcessState.Success() || !strings.Contains(stderr, "SIGXCPU") && !strings.Contains(cmd.ProcessState.String(), "killed") {
					t.Errorf("%v: %.300s", cmd.ProcessState, stderr)
				}
			})
		})
	}
}
