// SPDX-License-Identifier: Apache-2.0

// Package machine is what sandboxd knows of a virtual machine, whatever drives
// it. A [Machine] acts and reports; it keeps no states of an analysis, publishes
// nothing and decides nothing. Backends are the packages below this one.
package machine

import (
	"context"
	"errors"
	"os"
	"time"

	"github.com/petri-sandbox/petri/schemas"
)

// ErrGone says that the machine's process, or the link to it, has ended.
var ErrGone = errors.New("the machine is gone")

// A Machine is one virtual machine of one analysis. Methods may be called from
// several goroutines; each returns when the deed is done or ctx is. Which call
// is legal when is the caller's business (package sandboxd, the state machine).
type Machine interface {
	// Poweron starts the machine, warm if it can, and returns when the agent
	// inside has taken on the identity.
	Poweron(ctx context.Context, id Identity) (Boot, error)
	Pause(ctx context.Context) error
	Resume(ctx context.Context) error
	// Restart boots the machine anew and returns when the agent has answered again.
	Restart(ctx context.Context, id Identity) (Boot, error)
	// Shutdown asks the guest to power off and returns when it is off.
	Shutdown(ctx context.Context) error
	// Poweroff ends the machine at once.
	Poweroff(ctx context.Context) error

	// Run starts a command in the guest; sample holds the sample's bytes.
	// An error of type *[NotExecuted] says that the guest's kernel or loader
	// refused. Its exit comes as an [Event].
	Run(ctx context.Context, r Run, sample *os.File) (Started, error)
	// Exec runs a command beside the sample and waits for its end.
	Exec(ctx context.Context, e Exec) (schemas.Exec, error)
	// Collect sends the files that the sample changed to the [Observer].
	Collect(ctx context.Context, c Collect) (Collected, error)
	// Flush returns when everything traced so far has reached the Observer.
	Flush(ctx context.Context) error
	// DumpMemory writes an ELF core of the guest's RAM to f. The guest stands
	// still meanwhile.
	DumpMemory(ctx context.Context, f *os.File) error

	// Close ends the machine, if it still is, and whatever drives it. It
	// returns when nothing of it is left.
	Close() error
}

// A Screenshotter is a [Machine] whose guest has a display.
type Screenshotter interface {
	// Screenshot writes a picture of it to f, as PNG. f must be open for writing
	// only.
	Screenshot(ctx context.Context, f *os.File) error
}

// An Observer takes what a machine reports. Calls come from several
// goroutines, those about one source or file in order.
type Observer interface {
	// Event takes one fact.
	Event(Event)
	// Data takes bytes of a high-volume source. It may block: the source then
	// waits, and counts what it loses.
	Data(src schemas.Source, p []byte)
	// End says that a source has ended, and how.
	End(src schemas.Source, c schemas.SourceCoverage)
	// File begins a file that Collect sends; the writer takes its bytes.
	File(f schemas.DroppedFile) FileWriter
}

// A FileWriter takes the bytes of one collected file.
type FileWriter interface {
	// Write must not keep p.
	Write(p []byte) (int, error)
	// Close ends the file. An error says that it is not whole.
	Close(cut int64, err error)
}

// An Event is a fact that a machine reports: one of the field types is set.
type Event struct {
	Time     time.Time             `json:"time"`
	Lease    *schemas.IPAddress    `json:"lease,omitempty"`
	Exited   *schemas.SampleExited `json:"exited,omitempty"`
	Tree     *TreeExited           `json:"tree,omitempty"`
	Off      *schemas.MachineOff   `json:"off,omitempty"`
	Behavior *schemas.Behavior     `json:"behavior,omitempty"`
	Fault    string                `json:"fault,omitempty"` // something broke that costs coverage

	Tampering *schemas.PossibleTampering `json:"tampering,omitempty"`
}

// TreeExited says that no process of the sample is left.
type TreeExited struct{}

// Identity is what the guest is made to look like, and the entropy that makes
// it so.
type Identity struct {
	schemas.Identity
	Entropy []byte    `json:"entropy"` // for the guest kernel's random number generator
	Time    time.Time `json:"time"`    // for its clock; the zero time is now
}

// Boot says what was started.
type Boot struct {
	schemas.PostPoweron
	Ready schemas.GuestReady
}

// Run is a command for the guest.
type Run struct {
	schemas.RunSample
	Name   string   `json:"name"`   // the sample's file name in the guest
	Size   int64    `json:"size"`   // of the sample
	Needed []string `json:"needed"` // shared libraries that it asks for
	// Versions are those of the libraries' symbols that its loader insists on: the
	// library's name, a space, the version's.
	Versions []string `json:"versions,omitempty"`
	Interp   string   `json:"interp"`            // loader, or of a script its interpreter, that it asks for
	Program  string   `json:"program,omitempty"` // that the interpreter looks for: env's python3
	RunPath  []string `json:"run_path"`
	Trace    bool     `json:"trace"`
	// Load says how to run what the kernel does not exec: [schemas.HowMapped], a
	// shared object, or [schemas.HowLoaded], a kernel module. Empty: by exec.
	Load   string `json:"load,omitempty"`
	Limits Limits `json:"limits"`
	// Stdin is what the sample can read, at most [MaxStdin] bytes; then, or
	// without it, standard input is at its end.
	Stdin []byte `json:"stdin,omitempty"`
}

// MaxStdin is what a pipe takes without anybody who reads it, and what fits
// into the request.
const MaxStdin = 32 << 10

// Limits bound what a sample may make the sandbox keep.
type Limits struct {
	Stdout int64 `json:"stdout"` // bytes, each of stdout and stderr
	Memory int64 `json:"memory"` // bytes of all its processes; 0: what the guest can spare
	Tasks  int   `json:"tasks"`  // processes and threads
}

// Started is the proof of execution.
type Started = schemas.SampleStarted

// NotExecuted says why the guest never ran the sample.
type NotExecuted struct {
	Reason  string   `json:"reason"`
	Errno   string   `json:"errno,omitempty"`
	Missing []string `json:"missing,omitempty"` // shared libraries or an interpreter
}

func (e *NotExecuted) Error() string { return "not executed: " + e.Reason }

// Exec is a command to run beside the sample.
type Exec struct {
	Command []string      `json:"command"`
	Timeout time.Duration `json:"timeout"`
}

// Collect bounds what is sent of the changed files.
type Collect struct {
	MaxFile  int64 `json:"max_file"`  // bytes of one file
	MaxFiles int   `json:"max_files"` // files sent with their bytes
	MaxTotal int64 `json:"max_total"` // bytes of all
	MaxList  int   `json:"max_list"`  // files listed at all
	// Final says that the machine goes down next: the sample, which stands still
	// during a collection, does not go on after it.
	Final bool `json:"final,omitempty"`
}

// Collected sums up a Collect.
type Collected struct {
	Listed  int   `json:"listed"`
	Sent    int   `json:"sent"`
	Omitted int64 `json:"omitted"` // not even listed
}
