// SPDX-License-Identifier: Apache-2.0

package behavior

import (
	"github.com/petri-sandbox/petri/schemas"
	"github.com/petri-sandbox/petri/schemas/sysno"
	"github.com/petri-sandbox/petri/schemas/trace"
)

// call is a system call that is being handled.
type call struct {
	t     *Tracker
	r     *trace.Record
	th    *thread
	p     *process
	desc  sysno.Call
	errno string // of a call that failed
	again bool   // it was handled before, when it had begun
}

// done reports whether the call has returned without an error.
func (c *call) done() bool { return c.r.Finished() && c.errno == "" }

// maybe reports whether the call has not failed, as far as is known.
func (c *call) maybe() bool { return c.errno == "" }

// told reports whether everything is known that a handler looks at: all values,
// of which NULL and pointers to what has no text are none.
func (c *call) told() bool {
	for i, g := range c.desc.Args {
		if c.r.Untold.Arg(i) && !g.Type.Pointer() {
			return false
		}
	}
	// The flags are in a structure, whose byte order is that of the CPU.
	return c.r.Untold&trace.UntoldCPU == 0 || c.desc.Name != "openat2"
}

func (c *call) int(i int) int    { return int(int32(c.r.Args[i])) }
func (c *call) u64(i int) uint64 { return c.r.Args[i] }
func (c *call) result() int      { return int(int32(c.r.Result)) }

func (c *call) value(s sysno.Set, name string) uint64 { return c.r.ABI.Value(s, name) }

// has reports whether flags hold the flag of that name. A flag that the CPU
// lacks is never there.
func (c *call) has(flags uint64, s sysno.Set, name string) bool {
	v := c.value(s, name)
	return v != 0 && flags&v == v
}

// bytes are those attached to an argument, nil if there are none.
func (c *call) bytes(i int, k trace.Kind) []byte {
	a := c.r.Attached(uint8(i), k)
	if a == nil || a.Flags&trace.Unreadable != 0 {
		return nil
	}
	return a.Data
}

func (c *call) text(i int) string {
	s, _ := c.r.Text(uint8(i))
	return s
}

// event is the call's event, which lacks only its object.
func (c *call) event(category, action string) schemas.Behavior {
	b := c.t.event(c.th, c.r, category, action)
	b.Syscall = c.desc.Name
	if c.r.Untold&trace.UntoldCPU == 0 {
		b.ABI = c.r.ABI.String()
	}
	if c.r.Finished() {
		result := c.r.Result // the record is another's
		b.Result, b.Errno = &result, c.errno
	}
	return b
}

func (t *Tracker) event(th *thread, r *trace.Record, category, action string) schemas.Behavior {
	return schemas.Behavior{
		Category: category, Action: action, Record: r.Number, At: r.Begin,
		Actor: schemas.Actor{
			PID: th.proc.info.PID, TID: int(th.nstid), Start: th.proc.info.Start, Comm: Printable(th.comm),
		},
	}
}

func (c *call) emitProcess(action string, p schemas.ProcessBehavior) {
	b := c.event("process", action)
	b.Process = &p
	c.t.emit(b)
}

func (c *call) emitKernel(action string, k schemas.KernelBehavior) {
	b := c.event("kernel", action)
	b.Kernel = &k
	c.t.emit(b)
}

func (c *call) emitMemory(action string, m schemas.MemoryBehavior) {
	b := c.event("memory", action)
	b.Memory = &m
	c.t.emit(b)
}

// handlers say what the calls mean. Others are only counted.
var handlers = map[string]func(*call){
	"open":              func(c *call) { c.open(-1, 0, c.u64(1), c.int(2)) },
	"openat":            func(c *call) { c.open(0, 1, c.u64(2), c.int(3)) },
	"openat2":           (*call).openat2,
	"creat":             (*call).creat,
	"open_by_handle_at": func(c *call) { c.anonymous(c.result(), "file by handle", c.u64(2), sysno.SetOpen) },

	"unlink":   func(c *call) { c.delete(-1, 0) },
	"unlinkat": func(c *call) { c.delete(0, 1) },
	"rmdir":    func(c *call) { c.delete(-1, 0) },

	"rename":    func(c *call) { c.rename(-1, 0, -1, 1) },
	"renameat":  func(c *call) { c.rename(0, 1, 2, 3) },
	"renameat2": func(c *call) { c.rename(0, 1, 2, 3) },
	"link":      func(c *call) { c.link(-1, 0, -1, 1) },
	"linkat":    func(c *call) { c.link(0, 1, 2, 3) },
	"symlink":   func(c *call) { c.symlink(0, -1, 1) },
	"symlinkat": func(c *call) { c.symlink(0, 1, 2) },
	"mkdir":     func(c *call) { c.mkdir(-1, 0, c.int(1)) },
	"mkdirat":   func(c *call) { c.mkdir(0, 1, c.int(2)) },
	"mknod":     func(c *call) { c.mknod(-1, 0, c.int(1)) },
	"mknodat":   func(c *call) { c.mknod(0, 1, c.int(2)) },

	"chmod":     func(c *call) { c.chmod(c.pathAt(-1, 0), c.int(1)) },
	"fchmodat":  func(c *call) { c.chmod(c.pathAt(0, 1), c.int(2)) },
	"fchmodat2": func(c *call) { c.chmod(c.pathAt(0, 1), c.int(2)) },
	"fchmod":    func(c *call) { c.chmod(c.pathOf(c.int(0)), c.int(1)) },
	"chown":     func(c *call) { c.chown(c.pathAt(-1, 0), 1) },
	"lchown":    func(c *call) { c.chown(c.pathAt(-1, 0), 1) },
	"fchown":    func(c *call) { c.chown(c.pathOf(c.int(0)), 1) },
	"fchownat":  func(c *call) { c.chown(c.pathAt(0, 1), 2) },
	"chown32":   func(c *call) { c.chown(c.pathAt(-1, 0), 1) },
	"lchown32":  func(c *call) { c.chown(c.pathAt(-1, 0), 1) },
	"fchown32":  func(c *call) { c.chown(c.pathOf(c.int(0)), 1) },

	"truncate":     func(c *call) { c.truncate(c.pathAt(-1, 0)) },
	"truncate64":   func(c *call) { c.truncate(c.pathAt(-1, 0)) },
	"ftruncate":    func(c *call) { c.truncate(c.pathOf(c.int(0))) },
	"ftruncate64":  func(c *call) { c.truncate(c.pathOf(c.int(0))) },
	"mount":        (*call).mount,
	"fsmount":      (*call).fsmount,
	"move_mount":   func(c *call) { c.mountAt(c.pathAt(2, 3), c.pathAt(0, 1).raw, "") },
	"pivot_root":   func(c *call) { c.mountAt(c.pathAt(-1, 0), c.text(1), "pivot_root") },
	"umount":       func(c *call) { c.mountAt(c.pathAt(-1, 0), "", "umount") },
	"umount2":      func(c *call) { c.mountAt(c.pathAt(-1, 0), "", "umount") },
	"access":       func(c *call) { c.touch(c.pathAt(-1, 0), "access") },
	"faccessat":    func(c *call) { c.touch(c.pathAt(0, 1), "access") },
	"faccessat2":   func(c *call) { c.touch(c.pathAt(0, 1), "access") },
	"stat":         func(c *call) { c.touch(c.pathAt(-1, 0), "stat") },
	"lstat":        func(c *call) { c.touch(c.pathAt(-1, 0), "stat") },
	"stat64":       func(c *call) { c.touch(c.pathAt(-1, 0), "stat") },
	"lstat64":      func(c *call) { c.touch(c.pathAt(-1, 0), "stat") },
	"oldstat":      func(c *call) { c.touch(c.pathAt(-1, 0), "stat") },
	"newfstatat":   func(c *call) { c.touch(c.pathAt(0, 1), "stat") },
	"fstatat64":    func(c *call) { c.touch(c.pathAt(0, 1), "stat") },
	"statx":        func(c *call) { c.touch(c.pathAt(0, 1), "stat") },
	"statfs":       func(c *call) { c.touch(c.pathAt(-1, 0), "stat") },
	"statfs64":     func(c *call) { c.touch(c.pathAt(-1, 0), "stat") },
	"readlink":     func(c *call) { c.touch(c.pathAt(-1, 0), "readlink") },
	"readlinkat":   func(c *call) { c.touch(c.pathAt(0, 1), "readlink") },
	"utime":        func(c *call) { c.touch(c.pathAt(-1, 0), "utime") },
	"utimes":       func(c *call) { c.touch(c.pathAt(-1, 0), "utime") },
	"futimesat":    func(c *call) { c.touch(c.pathAt(0, 1), "utime") },
	"utimensat":    func(c *call) { c.touch(c.pathAt(0, 1), "utime") },
	"setxattr":     func(c *call) { c.touch(c.pathAt(-1, 0), "setxattr") },
	"lsetxattr":    func(c *call) { c.touch(c.pathAt(-1, 0), "setxattr") },
	"fsetxattr":    func(c *call) { c.touch(c.pathOf(c.int(0)), "setxattr") },
	"removexattr":  func(c *call) { c.touch(c.pathAt(-1, 0), "removexattr") },
	"lremovexattr": func(c *call) { c.touch(c.pathAt(-1, 0), "removexattr") },
	"swapon":       func(c *call) { c.touch(c.pathAt(-1, 0), "swapon") },
	"inotify_add_watch": func(c *call) {
		c.touch(c.pathAt(-1, 1), "watch")
	},

	"chdir":  (*call).chdir,
	"fchdir": (*call).chdir,
	"chroot": (*call).chroot,

	"read":     func(c *call) { c.read(c.int(0)) },
	"pread64":  func(c *call) { c.read(c.int(0)) },
	"readv":    func(c *call) { c.read(c.int(0)) },
	"preadv":   func(c *call) { c.read(c.int(0)) },
	"preadv2":  func(c *call) { c.read(c.int(0)) },
	"write":    func(c *call) { c.write(c.int(0), 1) },
	"pwrite64": func(c *call) { c.write(c.int(0), 1) },
	"writev":   func(c *call) { c.write(c.int(0), 1) },
	"pwritev":  func(c *call) { c.write(c.int(0), 1) },
	"pwritev2": func(c *call) { c.write(c.int(0), 1) },
	"vmsplice": func(c *call) { c.write(c.int(0), 1) },

	"sendfile":        func(c *call) { c.copied(c.int(1), c.int(0)) },
	"sendfile64":      func(c *call) { c.copied(c.int(1), c.int(0)) },
	"splice":          func(c *call) { c.copied(c.int(0), c.int(2)) },
	"copy_file_range": func(c *call) { c.copied(c.int(0), c.int(2)) },

	"close":       (*call).close,
	"close_range": (*call).closeRange,
	"dup":         func(c *call) { c.dup(c.int(0), false) },
	"dup2":        func(c *call) { c.dup(c.int(0), false) },
	"dup3":        func(c *call) { c.dup(c.int(0), c.has(c.u64(2), sysno.SetOpen, "O_CLOEXEC")) },
	"fcntl":       (*call).fcntl,
	"fcntl64":     (*call).fcntl,
	"pipe":        func(c *call) { c.pair(0, "pipe", 0) },
	"pipe2":       func(c *call) { c.pair(0, "pipe", c.u64(1)) },

	"epoll_create":   func(c *call) { c.anonymous(c.result(), "epoll", 0, 0) },
	"epoll_create1":  func(c *call) { c.anonymous(c.result(), "epoll", c.u64(0), sysno.SetOpen) },
	"eventfd":        func(c *call) { c.anonymous(c.result(), "eventfd", 0, 0) },
	"eventfd2":       func(c *call) { c.anonymous(c.result(), "eventfd", c.u64(1), sysno.SetOpen) },
	"signalfd":       func(c *call) { c.anonymous(c.result(), "signalfd", 0, 0) },
	"signalfd4":      func(c *call) { c.anonymous(c.result(), "signalfd", c.u64(3), sysno.SetOpen) },
	"timerfd_create": func(c *call) { c.anonymous(c.result(), "timerfd", c.u64(1), sysno.SetOpen) },
	"inotify_init":   func(c *call) { c.anonymous(c.result(), "inotify", 0, 0) },
	"inotify_init1":  func(c *call) { c.anonymous(c.result(), "inotify", c.u64(0), sysno.SetOpen) },
	"pidfd_open":     func(c *call) { c.anonymous(c.result(), "pidfd", 0, 0) },
	"pidfd_getfd":    func(c *call) { c.anonymous(c.result(), "another's descriptor", 0, 0) },
	"userfaultfd":    func(c *call) { c.anonymous(c.result(), "userfaultfd", c.u64(0), sysno.SetOpen) },

	"memfd_create": (*call).memfd,
	"memfd_secret": func(c *call) { c.anonymous(c.result(), "memfd_secret", c.u64(0), sysno.SetOpen) },

	"mmap":              (*call).mmap,
	"mmap2":             (*call).mmap,
	"mprotect":          (*call).mprotect,
	"pkey_mprotect":     (*call).mprotect,
	"process_vm_writev": (*call).processWrite,

	"execve":   func(c *call) { c.execFailed(-1, 0, 1) },
	"execv":    func(c *call) { c.execFailed(-1, 0, 1) },
	"execveat": func(c *call) { c.execFailed(0, 1, 2) },
	"unshare":  (*call).unshare,
	"prctl":    (*call).prctl,
	"ptrace":   (*call).ptrace,

	"kill":              func(c *call) { c.signal(c.int(0), c.int(1)) },
	"tkill":             func(c *call) { c.signal(c.int(0), c.int(1)) },
	"tgkill":            func(c *call) { c.signal(c.int(0), c.int(2)) },
	"rt_sigqueueinfo":   func(c *call) { c.signal(c.int(0), c.int(1)) },
	"rt_tgsigqueueinfo": func(c *call) { c.signal(c.int(0), c.int(2)) },
	"pidfd_send_signal": func(c *call) { c.signal(0, c.int(1)) },

	"setuid":      func(c *call) { c.setuid(0) },
	"setreuid":    func(c *call) { c.setuid(1) },
	"setresuid":   func(c *call) { c.setuid(1) },
	"setfsuid":    func(c *call) { c.setuid(0) },
	"setuid32":    func(c *call) { c.setuid(0) },
	"setreuid32":  func(c *call) { c.setuid(1) },
	"setresuid32": func(c *call) { c.setuid(1) },

	"socket":     (*call).socket,
	"socketpair": func(c *call) { c.pair(3, "socket", c.u64(1)) },
	"connect":    (*call).connect,
	"bind":       (*call).bind,
	"listen":     (*call).listen,
	"accept":     func(c *call) { c.accept(0) },
	"accept4":    func(c *call) { c.accept(c.u64(3)) },
	"send":       func(c *call) { c.send(1, -1) },
	"sendto":     func(c *call) { c.send(1, 4) },
	"sendmsg":    func(c *call) { c.send(1, 1) },
	"sendmmsg":   func(c *call) { c.send(1, 1) },

	"init_module":   (*call).initModule,
	"finit_module":  (*call).finitModule,
	"delete_module": func(c *call) { c.emitKernel("module_unload", schemas.KernelBehavior{Name: Printable(c.text(0))}) },
	"bpf": func(c *call) {
		c.emitKernel("bpf", schemas.KernelBehavior{Command: c.r.ABI.Enum(sysno.SetBpf, c.u64(0))})
	},
	"kexec_load":      func(c *call) { c.emitKernel("kexec", schemas.KernelBehavior{Length: c.u64(1)}) },
	"kexec_file_load": (*call).kexecFile,
	"reboot":          (*call).reboot,
	"io_uring_setup":  (*call).ioUring,
}
