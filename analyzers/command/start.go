// SPDX-License-Identifier: Apache-2.0

package command

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/petri-sandbox/petri/analyzers"
	"github.com/petri-sandbox/petri/analyzers/internal/jail"
)

// environment is all that a command gets. The last line keeps Python's sets in
// one order: the same task must give the same answer.
var environment = []string{
	"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8", "HOME=/nonexistent", "TMPDIR=/nonexistent",
	"PYTHONDONTWRITEBYTECODE=1", "PYTHONHASHSEED=0",
}

// system is what every program may read, where the kernel has Landlock.
var system = []string{
	"/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/opt", "/etc",
	"/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom",
}

// keptStderr is how much of the end of standard error is kept for the error.
const keptStderr = 8 << 10

// Preflight implements [analyzers.Preflighter].
func (a Analyzer) Preflight(context.Context) error {
	if err := errors.Join(a.Changed(), a.Reachable()); err != nil {
		return fmt.Errorf("%w: %w", analyzers.ErrUnavailable, err)
	}
	return nil
}

// Analyze implements [analyzers.Analyzer]. It runs the command.
func (a Analyzer) Analyze(ctx context.Context, job analyzers.Job, emit analyzers.Emit) error {
	if len(a.def.Argv) == 0 {
		return errors.New("no command is defined")
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	r, err := a.start(ctx, job)
	if err != nil {
		return err
	}
	if err := Read(r.out, emit, a.def.MaxOutput); err != nil {
		// Nobody listens any more. The command ends with this process, which
		// must not kill anybody while it is confined.
		r.out.Close()
		return err
	}
	err = r.cmd.Wait()
	return a.verdict(err, r.stderr)
}

// verdict is what the end of a command means.
func (a Analyzer) verdict(err error, stderr *tail) error {
	var exit *exec.ExitError
	if err == nil {
		return nil
	}
	last := stderr.last()
	if !errors.As(err, &exit) {
		return fmt.Errorf("run the command: %w", err)
	}
	ws, _ := exit.Sys().(syscall.WaitStatus)
	because := ""
	if last != "" {
		because = ": " + last
	}
	cpu := exit.UserTime() + exit.SystemTime()
	switch {
	case ws.Signaled() && (ws.Signal() == syscall.SIGXCPU || ws.Signal() == syscall.SIGKILL && cpu >= a.def.CPU.D()): // not all heed the first
		return fmt.Errorf("CPU time limit of %s exceeded", a.def.CPU.D())
	case ws.Signaled() && ws.Signal() == syscall.SIGXFSZ:
		return errors.New("the command wrote a file, which it must not (its output belongs on standard output)")
	case ws.Signaled():
		return fmt.Errorf("the command was killed by %s%s", unix.SignalName(ws.Signal()), because)
	case exit.ExitCode() == ExitSkip && last == "":
		return analyzers.Skip("exit code %d", ExitSkip)
	case exit.ExitCode() == ExitSkip:
		return analyzers.Skip("%s", last)
	}
	if stderr.memory() {
		return fmt.Errorf("exit code %d: memory limit of %d MiB exceeded", exit.ExitCode(), a.def.Memory>>20)
	}
	return fmt.Errorf("exit code %d%s", exit.ExitCode(), because)
}

// running is a command that was started.
type running struct {
	cmd    *exec.Cmd
	out    io.ReadCloser
	stderr *tail
}

// start starts the command on a thread of its own that can read files and do
// nothing else to them.
func (a Analyzer) start(ctx context.Context, job analyzers.Job) (*running, error) {
	r := &running{stderr: &tail{}}
	r.cmd = exec.CommandContext(ctx, a.def.Argv[0], a.arguments(job)...)
	r.cmd.Dir = a.def.Dir
	r.cmd.Env = append(append([]string(nil), environment...), "PETRI_KIND="+string(job.Artifact.Kind), "PETRI_SHA256="+job.Artifact.SHA256.String())
	r.cmd.Stderr = io.MultiWriter(r.stderr, os.Stderr) // the runner keeps what goes to ours
	file, _ := job.Input.ReaderAt.(*os.File)
	var files []*os.File
	switch {
	case a.wantsFile() && file == nil:
		return nil, errors.New("the artifact is no file here")
	case a.wantsFile():
		r.cmd.ExtraFiles = []*os.File{file} // descriptor 3
		files = append(files, file)
	case file != nil:
		r.cmd.Stdin = file
	default:
		r.cmd.Stdin = job.Input.Reader()
	}
	var err error
	if r.out, err = r.cmd.StdoutPipe(); err != nil {
		return nil, fmt.Errorf("make pipe: %w", err)
	}
	done := make(chan error)
	go func() {
		// The thread ends with this goroutine: its bounds are for ever.
		runtime.LockOSThread()
		done <- a.launch(r.cmd, files)
	}()
	if err := <-done; err != nil {
		return nil, err
	}
	return r, nil
}

func (a Analyzer) launch(cmd *exec.Cmd, files []*os.File) error {
	// Only a child that has been confined can bind its threads.
	if nnp, err := unix.PrctlRetInt(unix.PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0); err == nil && nnp == 1 {
		paths := append([]string{a.def.Dir}, system...)
		for _, f := range a.def.Files {
			paths = append(paths, filepath.Dir(f.Path))
		}
		if _, err := jail.ReadOnly(paths, files); err != nil {
			return fmt.Errorf("confine the command: %w", err)
		}
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start the command: %w", err)
	}
	jail.Shrink(cmd.Process.Pid, a.def.Memory)
	return nil
}

func (a Analyzer) wantsFile() bool {
	for _, s := range a.def.Argv[1:] {
		if strings.Contains(s, fileHolder) {
			return true
		}
	}
	return false
}

func (a Analyzer) arguments(job analyzers.Job) []string {
	fill := strings.NewReplacer(fileHolder, "/dev/fd/3", kindHolder, string(job.Artifact.Kind), sha256Holder, job.Artifact.SHA256.String())
	var out []string
	for _, s := range a.def.Argv[1:] {
		out = append(out, fill.Replace(s))
	}
	return out
}

// tail keeps the beginning and the end of what is written to it.
type tail struct{ head, b []byte }

func (t *tail) Write(p []byte) (int, error) {
	t.head = append(t.head, p[:min(len(p), keptStderr-len(t.head))]...)
	t.b = append(t.b, p...)
	if n := len(t.b) - keptStderr; n > 0 {
		t.b = append(t.b[:0], t.b[n:]...)
	}
	return len(p), nil
}

// memory reports whether it looks as if memory was at its end: as Go, C and
// Python say it.
func (t *tail) memory() bool {
	for _, b := range [][]byte{t.head, t.b} {
		for _, s := range []string{"out of memory", "annot allocate memory", "MemoryError"} {
			if bytes.Contains(b, []byte(s)) {
				return true
			}
		}
	}
	return false
}

// last is the last line that is not empty.
func (t *tail) last() string {
	b := bytes.TrimSpace(t.b)
	return string(bytes.TrimSpace(b[bytes.LastIndexByte(b, '\n')+1:]))
}
