// SPDX-License-Identifier: Apache-2.0

package schemas

import (
	"fmt"
	"strings"
)

// Names of the context events. The first seventeen are F-Secure SEE's; a
// protocol may trigger any other name that [CheckEventName] allows.
const (
	EventPrePoweron       = "pre_poweron"
	EventPostPoweron      = "post_poweron"
	EventIPAddress        = "ip_address"
	EventRunSample        = "run_sample"
	EventPrePause         = "pre_pause"
	EventPostPause        = "post_pause"
	EventSnapshotsCapture = "snapshots_capture"
	EventPreResume        = "pre_resume"
	EventPostResume       = "post_resume"
	EventPreShutdown      = "pre_shutdown"
	EventPostShutdown     = "post_shutdown"
	EventPrePoweroff      = "pre_poweroff"
	EventPostPoweroff     = "post_poweroff"
	EventPreRestart       = "pre_restart"
	EventPostRestart      = "post_restart"
	EventStartAnalysis    = "start_analysis"
	EventWaitAnalysis     = "wait_analysis"

	EventSubmitted     = "analysis_submitted"
	EventClaimed       = "analysis_claimed"
	EventGuestReady    = "guest_ready"
	EventSampleStarted = "sample_started"
	EventSampleExited  = "sample_exited"
	EventTreeExited    = "sample_tree_exited"
	EventMachineOff    = "machine_off"
	EventFault         = "fault"
	EventTampering     = "possible_tampering"
	EventLogAway       = "log_away"
	EventHookFailed    = "hook_failed"
	EventStepFailed    = "step_failed"
	EventPreExec       = "pre_exec"
	EventExec          = "exec"
	EventPreDumpMemory = "pre_dump_memory"
	EventCompleted     = "analysis_completed"
	EventFailed        = "analysis_failed"
	EventCancelled     = "analysis_cancelled"
	EventAmended       = "analysis_amended"
	EventRunAdopted    = "run_adopted"

	EventGateAnswered   = "gate_answered"
	EventControlDecided = "control_decided"
)

// ContextType is the type of the context event of that name.
func ContextType(name string) string { return "petri.context." + name + ".v1" }

// contextType is [ContextType] for types that serve many names; the zero value
// has none and decodes any.
func contextType(name string) string {
	if name == "" {
		return ""
	}
	return ContextType(name)
}

// Ending reports whether a context event of that name ends an analysis.
func Ending(name string) bool {
	return name == EventCompleted || name == EventFailed || name == EventCancelled
}

// AnalysisSubmitted is the first event of every analysis.
type AnalysisSubmitted struct {
	Submission Submission `json:"submission"`
	Attempt    int        `json:"attempt"` // from 1
	RetryOf    string     `json:"retry_of,omitempty"`
}

// EventType implements [Typed].
func (AnalysisSubmitted) EventType() string { return ContextType(EventSubmitted) }

// AnalysisClaimed says which sandbox runs the analysis.
type AnalysisClaimed struct {
	Worker  string `json:"worker"`  // the sandbox's id, stable over its restarts
	Host    string `json:"host"`    // its host's name
	Version string `json:"version"` // of Petri
}

// EventType implements [Typed].
func (AnalysisClaimed) EventType() string { return ContextType(EventClaimed) }

// A Transition is the data of pre_X and post_X where X is a verb of the
// machine: pause, resume, shutdown, poweroff or restart.
type Transition struct {
	Verb   string       `json:"-"` // pre_pause, …: the event's name
	From   string       `json:"from"`
	To     string       `json:"to"`
	Reason string       `json:"reason,omitempty"`
	Late   Duration     `json:"late,omitempty"` // how much later than the deed this was published
	Took   Duration     `json:"took,omitempty"` // of post_X: since pre_X
	Memory *MemoryState `json:"memory,omitempty"`
}

// MemoryState says what of the guest's RAM survived a transition.
type MemoryState struct {
	Survives bool   `json:"survives"`
	Note     string `json:"note"`
}

// EventType implements [Typed].
func (t Transition) EventType() string { return contextType(t.Verb) }

// PrePoweron announces the machine that is about to start.
type PrePoweron struct {
	From    string      `json:"from"`
	Machine MachineSpec `json:"machine"`
}

// EventType implements [Typed].
func (PrePoweron) EventType() string { return ContextType(EventPrePoweron) }

// MachineSpec describes a virtual machine.
type MachineSpec struct {
	Arch    string `json:"arch"`           // Debian's name of the guest's CPU
	With    string `json:"with,omitempty"` // what the guest has besides: python3
	Backend string `json:"backend"`
	Start   string `json:"start"` // warm or cold
	Accel   string `json:"accel"` // kvm or tcg
	CPUs    int    `json:"cpus"`
	Memory  int64  `json:"memory"` // bytes
}

// Guest names the guest that the machine is: amd64, or amd64+python3.
func (s MachineSpec) Guest() string {
	if s.With == "" {
		return s.Arch
	}
	return s.Arch + "+" + s.With
}

// PostPoweron says that the machine runs and what it was made from.
type PostPoweron struct {
	Machine  MachineSpec `json:"machine"`
	Version  string      `json:"version"`            // of the backend: QEMU 7.2.22
	Kernel   string      `json:"kernel"`             // uname -r of the guest
	Template *Digest     `json:"template,omitempty"` // artifact of kind template that the machine was restored from
	Image    string      `json:"image"`              // key of the guest's image
	Fallback string      `json:"fallback,omitempty"` // why it was booted although a warm start was asked for
	Took     Duration    `json:"took"`
	Pooled   bool        `json:"pooled,omitempty"` // it had been started before, and waited

	Isolation *Isolation `json:"isolation,omitempty"` // what keeps it from the host
}

// Isolation says what stands between a machine's processes and the host.
type Isolation struct {
	User       string   `json:"user"`             // whom they run as: own, sandbox or root
	Namespaces []string `json:"namespaces"`       // of their own: user, pid, net, ipc, uts
	Reason     string   `json:"reason,omitempty"` // why it is less than it should be
}

// Users of an [Isolation].
const (
	UserOwn     = "own"     // a user that nothing else on the host runs as
	UserSandbox = "sandbox" // the sandbox's own user
	UserRoot    = "root"
)

// String says it in a line.
func (i Isolation) String() string {
	s := "machines run as "
	switch i.User {
	case UserOwn:
		s += "a user of their own"
	case UserSandbox:
		s += "the sandbox's user"
	default:
		s += i.User
	}
	if len(i.Namespaces) > 0 {
		s += ", in namespaces of their own (" + strings.Join(i.Namespaces, ", ") + ")"
	} else {
		s += ", in no namespaces of their own"
	}
	if i.Reason != "" {
		s += ": " + i.Reason
	}
	return s
}

// EventType implements [Typed].
func (PostPoweron) EventType() string { return ContextType(EventPostPoweron) }

// GuestReady says that guestd has answered and which identity it took on.
type GuestReady struct {
	Agent    int      `json:"agent"` // version of the guest protocol
	Kernel   string   `json:"kernel"`
	Tracer   Tracer   `json:"tracer"`
	Identity Identity `json:"identity"`
}

// EventType implements [Typed].
func (GuestReady) EventType() string { return ContextType(EventGuestReady) }

// A Tracer says how system calls are being recorded.
type Tracer struct {
	Backend string `json:"backend"`         // ebpf, ptrace or none
	Error   string `json:"error,omitempty"` // why it is not ebpf, or is slower than need be
}

// An Identity is what a guest is made to look like, fresh for each analysis.
type Identity struct {
	Hostname  string   `json:"hostname"`
	MachineID string   `json:"machine_id"`
	MAC       string   `json:"mac"`
	Uptime    Duration `json:"uptime"`    // that the sample sees at its start
	FirstPID  int      `json:"first_pid"` // that the sample's processes count from
}

// IPAddress is the lease that the guest took.
type IPAddress struct {
	Address string `json:"address"`
	MAC     string `json:"mac"`
	Lease   string `json:"lease"` // how it was learned: dhcp
}

// EventType implements [Typed].
func (IPAddress) EventType() string { return ContextType(EventIPAddress) }

// RunSample announces the command that is about to run in the guest.
type RunSample struct {
	Path    string            `json:"path"` // of the sample in the guest
	Command []string          `json:"command"`
	Env     map[string]string `json:"env,omitempty"`
	Dir     string            `json:"dir"`
	User    string            `json:"user"`
}

// EventType implements [Typed].
func (RunSample) EventType() string { return ContextType(EventRunSample) }

// SampleStarted is the proof of execution: the guest's kernel has exec'd the
// command, or what [SampleStarted.How] says.
type SampleStarted struct {
	PID    int    `json:"pid"`    // in the sample's own process namespace
	Path   string `json:"path"`   // what was exec'd
	SHA256 Digest `json:"sha256"` // of the sample's bytes as they lie in the guest
	// How a file that is not exec'd came to run: mapped, by a runner that has
	// loaded the shared object, or loaded, by the kernel that has taken the module
	// in. Empty: the kernel has exec'd Path.
	How string `json:"how,omitempty"`
	// Forced says that the module was built for another kernel, and was taken in
	// without the kernel's checks of that.
	Forced bool `json:"forced,omitempty"`
}

// What [SampleStarted.How] can say.
const (
	HowMapped = "mapped"
	HowLoaded = "loaded"
)

// EventType implements [Typed].
func (SampleStarted) EventType() string { return ContextType(EventSampleStarted) }

// SampleExited says how the sample's first process ended, or why it never
// began.
type SampleExited struct {
	Reason   string   `json:"reason"`              // exited, killed, reboot, not_executed, tree_exited
	ExitCode *int     `json:"exit_code,omitempty"` // if it exited
	Signal   string   `json:"signal,omitempty"`    // if it was killed: SIGSEGV, …
	Error    string   `json:"error,omitempty"`     // if it was not executed
	Errno    string   `json:"errno,omitempty"`     // ENOEXEC, …
	Missing  []string `json:"missing,omitempty"`   // shared libraries that the guest lacks
	Ran      Duration `json:"ran,omitempty"`
	Left     int      `json:"left,omitempty"` // descendants that go on running
}

// EventType implements [Typed].
func (SampleExited) EventType() string { return ContextType(EventSampleExited) }

// TreeExited says that no process of the sample is left.
type TreeExited struct{}

// EventType implements [Typed].
func (TreeExited) EventType() string { return ContextType(EventTreeExited) }

// MachineOff says that the machine went down or broke without being asked.
type MachineOff struct {
	State  string `json:"state"`  // off or crashed
	Reason string `json:"reason"` // guest-shutdown, guest-reset, guest-panic, killed, …
}

// EventType implements [Typed].
func (MachineOff) EventType() string { return ContextType(EventMachineOff) }

// Fault is trouble that costs coverage and belongs to no step or hook.
type Fault struct {
	Text string `json:"text"`
}

// EventType implements [Typed].
func (Fault) EventType() string { return ContextType(EventFault) }

// PossibleTampering says that a process of the sample was about to make a call by
// which root can change the guest's kernel, or another process. It stood still
// until this had left the guest, and what had been recorded before. What the guest
// says from then on may be what the sample wants it to say.
type PossibleTampering struct {
	Call    string `json:"call"`              // init_module, bpf, …
	Request string `json:"request,omitempty"` // of bpf and ptrace
	ABI     string `json:"abi,omitempty"`     // of the call; none: not one that is known
	PID     int    `json:"pid"`               // in the sample's own process namespace
	Comm    string `json:"comm,omitempty"`    // the kernel's name of the thread
	// Records is how many records of the trace were made, and had left, before.
	Records uint64 `json:"records"`
	// Behind says why not all had left that was recorded before.
	Behind string `json:"behind,omitempty"`
}

// EventType implements [Typed].
func (PossibleTampering) EventType() string { return ContextType(EventTampering) }

// String says who was about to do what.
func (p PossibleTampering) String() string {
	s := p.Call
	if p.Request != "" {
		s += " " + p.Request
	}
	if p.Comm != "" {
		return fmt.Sprintf("process %d (%s) called %s", p.PID, p.Comm, s)
	}
	return fmt.Sprintf("process %d called %s", p.PID, s)
}

// LogAway says that the log took no events for a while, during which the guest
// stood still.
type LogAway struct {
	For Duration `json:"for"`
}

// EventType implements [Typed].
func (LogAway) EventType() string { return ContextType(EventLogAway) }

// Custom is the data of an event that a protocol triggered by name.
type Custom struct {
	Name    string            `json:"-"`
	Payload map[string]string `json:"payload,omitempty"`
}

// EventType implements [Typed].
func (c Custom) EventType() string { return contextType(c.Name) }

// FailedTransition takes the place of post_X: the event failed_X.
type FailedTransition struct {
	Verb  string `json:"-"` // failed_pause, …
	State string `json:"state"`
	Error string `json:"error"`
}

// EventType implements [Typed].
func (f FailedTransition) EventType() string { return contextType(f.Verb) }

// PreExec announces a command that is about to run in the guest beside the
// sample.
type PreExec struct {
	Command []string `json:"command"`
	Timeout Duration `json:"timeout"`
}

// EventType implements [Typed].
func (PreExec) EventType() string { return ContextType(EventPreExec) }

// PreDumpMemory says that the protocol is about to have the guest's RAM stored;
// the guest stands still for the dump.
type PreDumpMemory struct {
	Bytes int64 `json:"bytes"` // of RAM
}

// EventType implements [Typed].
func (PreDumpMemory) EventType() string { return ContextType(EventPreDumpMemory) }

// Exec is a command that the protocol ran in the guest, and its result.
type Exec struct {
	Command  []string `json:"command"`
	ExitCode int      `json:"exit_code"`
	Signal   string   `json:"signal,omitempty"`
	Stdout   string   `json:"stdout,omitempty"` // at most 16 KiB, control characters as they came
	Stderr   string   `json:"stderr,omitempty"`
	Cut      int64    `json:"cut,omitempty"` // bytes of output left out
}

// EventType implements [Typed].
func (Exec) EventType() string { return ContextType(EventExec) }

// HookFailed says that a hook broke or overran its deadline.
type HookFailed struct {
	Hook     string `json:"hook"`
	Event    string `json:"event"`
	Error    string `json:"error"`
	Required bool   `json:"required,omitempty"`
}

// EventType implements [Typed].
func (HookFailed) EventType() string { return ContextType(EventHookFailed) }

// StepFailed says that a step of the protocol failed and what that led to.
type StepFailed struct {
	Step      int    `json:"step"` // from 1
	Name      string `json:"name"`
	Error     string `json:"error"`
	OnFailure string `json:"on_failure"` // stop, continue or poweroff
}

// EventType implements [Typed].
func (StepFailed) EventType() string { return ContextType(EventStepFailed) }

// StartAnalysis closes the set of artifacts that sandboxd announces.
type StartAnalysis struct {
	Artifacts []AnnouncedArtifact `json:"artifacts"`
	Sources   []SourceCoverage    `json:"sources"`
	Hooks     []HookCoverage      `json:"hooks"`
	// Unheard is how many requests of analyzers came that were not looked at,
	// since too many had come before.
	Unheard int `json:"unheard,omitempty"`
}

// EventType implements [Typed].
func (StartAnalysis) EventType() string { return ContextType(EventStartAnalysis) }

// AnnouncedArtifact is one line of [StartAnalysis].
type AnnouncedArtifact struct {
	Kind        Kind   `json:"kind"`
	SHA256      Digest `json:"sha256"`
	Occurrences int    `json:"occurrences"`
}

// WaitAnalysis opens the wait for the analyzers.
type WaitAnalysis struct {
	Timeout  Duration `json:"timeout"` // from the event on
	Expected []string `json:"expected"`
}

// EventType implements [Typed].
func (WaitAnalysis) EventType() string { return "petri.context.wait_analysis.v2" }

// AnalysisCompleted ends an analysis whose protocol went through.
type AnalysisCompleted struct {
	Missing []MissingTask `json:"missing"` // empty if every expected answer came
}

// EventType implements [Typed].
func (AnalysisCompleted) EventType() string { return ContextType(EventCompleted) }

// A MissingTask is an answer that did not come.
type MissingTask struct {
	Analyzer string  `json:"analyzer"`
	SHA256   *Digest `json:"sha256,omitempty"` // of the artifact; none for a task over the whole analysis
	Reason   string  `json:"reason"`           // absent, timeout, withdrawn, unregistered
}

// Reasons of a [MissingTask].
const (
	MissingAbsent       = "absent"       // nothing was heard of the analyzer, or it came too late for this task
	MissingTimeout      = "timeout"      // it was there, and did not answer in time
	MissingWithdrawn    = "withdrawn"    // it unregistered, or registered anew for other kinds
	MissingUnregistered = "unregistered" // it is expected, and no analyzer of that name has ever registered
)

// AnalysisFailed ends an analysis that the sandbox could not carry through.
type AnalysisFailed struct {
	Reason string `json:"reason"` // a word: interrupted, machine, protocol, store, unsupported, unsupported_architecture, …
	Error  string `json:"error"`
}

// EventType implements [Typed].
func (AnalysisFailed) EventType() string { return ContextType(EventFailed) }

// AnalysisCancelled ends an analysis that somebody stopped.
type AnalysisCancelled struct {
	By string `json:"by"`
}

// EventType implements [Typed].
func (AnalysisCancelled) EventType() string { return ContextType(EventCancelled) }

// AnalysisAmended says that something came after the ending.
type AnalysisAmended struct {
	Analyzer string  `json:"analyzer"`
	SHA256   *Digest `json:"sha256,omitempty"`
	Run      string  `json:"run"`
}

// EventType implements [Typed].
func (AnalysisAmended) EventType() string { return ContextType(EventAmended) }

// RunAdopted makes a run's findings count in place of those before: the fold
// takes the newest adopted run for each analyzer and artifact. It comes after
// the ending.
type RunAdopted struct {
	Run string `json:"run"`
	By  string `json:"by"` // whoever adopted it; untrusted text
}

// EventType implements [Typed].
func (RunAdopted) EventType() string { return ContextType(EventRunAdopted) }

// GateAnswered says what became of the question to a gate: a service that the
// protocol lets decide whether the analysis goes on.
type GateAnswered struct {
	Gate   string   `json:"gate"`
	Event  string   `json:"event"`            // id of the event that it was asked about
	Answer string   `json:"answer"`           // go, stop, timeout, absent, invalid, or moot: the machine was ended meanwhile
	Effect string   `json:"effect"`           // go or stop: what the sandbox does
	Reason string   `json:"reason,omitempty"` // the service's own; untrusted text
	Waited Duration `json:"waited"`
}

// EventType implements [Typed].
func (GateAnswered) EventType() string { return ContextType(EventGateAnswered) }

// ControlDecided says what the sandbox made of an analyzer's [ControlRequest].
type ControlDecided struct {
	Finding  string `json:"finding"` // id of the event that brought the request
	Analyzer string `json:"analyzer"`
	Action   string `json:"action"`
	Granted  bool   `json:"granted"`
	Reason   string `json:"reason,omitempty"` // why not, or what was cut
	Effect   string `json:"effect,omitempty"` // for people: the wait ends 20s later
}

// EventType implements [Typed].
func (ControlDecided) EventType() string { return ContextType(EventControlDecided) }
