// SPDX-License-Identifier: Apache-2.0

package schemas

// Actor is who did something in the guest. PID and TID are the sample's own
// view; Start makes a reused PID another process.
type Actor struct {
	PID   int    `json:"pid"`
	TID   int    `json:"tid"`            // 0 if the trace has no threads
	Start uint64 `json:"start"`          // of the process: ns since the guest's boot
	Comm  string `json:"comm,omitempty"` // the kernel's name of the thread
}

// Behavior is one thing that the sample did, as the trace shows it. All
// behaviour is testimony of the guest.
type Behavior struct {
	Category string `json:"category"` // process, file, network, memory or kernel
	Action   string `json:"action"`   // exec, open, connect, …
	Record   uint64 `json:"record"`   // number of the trace record that shows it
	At       uint64 `json:"at"`       // ns since the guest's boot; 0 if the trace has no times
	// Number counts the analysis' live events from 1, whether they are shown or
	// not: who finds one missing has missed it. Elsewhere there is none.
	Number  uint64 `json:"number,omitempty"`
	Actor   Actor  `json:"actor"`
	Syscall string `json:"syscall,omitempty"`
	ABI     string `json:"abi,omitempty"`    // amd64, i386, …
	Result  *int64 `json:"result,omitempty"` // what the call returned; none if it had not returned
	Errno   string `json:"errno,omitempty"`  // ENOENT, … if it failed

	Process *ProcessBehavior `json:"process,omitempty"`
	File    *FileBehavior    `json:"file,omitempty"`
	Network *NetworkBehavior `json:"network,omitempty"`
	Memory  *MemoryBehavior  `json:"memory,omitempty"`
	Kernel  *KernelBehavior  `json:"kernel,omitempty"`
}

// EventType implements [Typed].
func (b Behavior) EventType() string {
	if b.Category == "" {
		return ""
	}
	return "petri.behavior." + b.Category + "." + b.Action + ".v1"
}

// BehaviorActions lists what [Behavior] events there are, as category.action.
var BehaviorActions = []string{
	"process.fork", "process.exec", "process.exit", "process.signal", "process.ptrace", "process.setuid", "process.rename",
	"file.open", "file.create", "file.write", "file.delete", "file.rename", "file.chmod", "file.chown", "file.link", "file.mkdir", "file.mount",
	"network.socket", "network.connect", "network.bind", "network.listen", "network.accept", "network.send",
	"memory.mmap_rwx", "memory.process_write", "memory.memfd",
	"kernel.module_load", "kernel.module_unload", "kernel.bpf", "kernel.kexec", "kernel.reboot", "kernel.io_uring",
}

// ProcessBehavior is the object of process.*.
type ProcessBehavior struct {
	PID         int      `json:"pid,omitempty"`   // of the child or target
	Start       uint64   `json:"start,omitempty"` // of the child
	Thread      bool     `json:"thread,omitempty"`
	Path        string   `json:"path,omitempty"`
	Argv        []string `json:"argv,omitempty"`
	ArgvOmitted int      `json:"argv_omitted,omitempty"` // arguments that are not in Argv
	ExitCode    *int     `json:"exit_code,omitempty"`
	Signal      string   `json:"signal,omitempty"`
	Request     string   `json:"request,omitempty"` // of ptrace
	UID         *int     `json:"uid,omitempty"`
	Name        string   `json:"name,omitempty"`
}

// FileBehavior is the object of file.*.
type FileBehavior struct {
	Path   string `json:"path"`             // absolute where it could be resolved
	Raw    string `json:"raw,omitempty"`    // as the program passed it, if that differs
	Target string `json:"target,omitempty"` // of rename and link
	FD     *int   `json:"fd,omitempty"`
	Flags  string `json:"flags,omitempty"` // O_RDONLY|O_CLOEXEC
	Mode   string `json:"mode,omitempty"`  // octal
	Owner  string `json:"owner,omitempty"` // uid:gid, of chown
	Bytes  int64  `json:"bytes,omitempty"`
	Data   []byte `json:"data,omitempty"` // the first bytes of a write
}

// NetworkBehavior is the object of network.*.
type NetworkBehavior struct {
	Family  string `json:"family,omitempty"` // AF_INET, …
	Type    string `json:"type,omitempty"`   // SOCK_STREAM, …
	Address string `json:"address,omitempty"`
	Port    int    `json:"port,omitempty"`
	Path    string `json:"path,omitempty"` // of AF_UNIX
	FD      *int   `json:"fd,omitempty"`
	Bytes   int64  `json:"bytes,omitempty"`
	Data    []byte `json:"data,omitempty"`
}

// MemoryBehavior is the object of memory.*.
type MemoryBehavior struct {
	Address uint64 `json:"address,omitempty"`
	Length  uint64 `json:"length,omitempty"`
	Prot    string `json:"prot,omitempty"`
	PID     int    `json:"pid,omitempty"` // of the process written to
	Name    string `json:"name,omitempty"`
}

// KernelBehavior is the object of kernel.*.
type KernelBehavior struct {
	Name    string `json:"name,omitempty"`
	Command string `json:"command,omitempty"`
	Length  uint64 `json:"length,omitempty"`
	Params  string `json:"params,omitempty"`
}
