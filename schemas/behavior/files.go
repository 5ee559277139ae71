// SPDX-License-Identifier: Apache-2.0

package behavior

import (
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/petri-sandbox/petri/schemas"
	"github.com/petri-sandbox/petri/schemas/sysno"
	"github.com/petri-sandbox/petri/schemas/trace"
)

// dirs are a process' root and current directory. Their zero value is that of a
// process of which nothing is known but that its root is /.
type dirs struct {
	root string // absolute without a slash at its end, "" for /
	cwd  string // absolute, "" if it is not known
}

// name is a file's name as the program gave it and as it was meant.
type name struct {
	path string // absolute, or what could be found out
	raw  string
	abs  bool // path is a file's
}

const atFDCWD = -100

// resolve finds out what a name means, by its letters alone.
func (p *process) resolve(dirfd int, raw string) name {
	n := name{path: raw, raw: raw}
	if strings.HasPrefix(raw, "/") {
		n.path, n.abs = p.dirs.root+path.Clean(raw), true
		return n
	}
	base := p.dirs.cwd
	if dirfd != atFDCWD {
		d, ok := p.fds.get(dirfd)
		if raw == "" {
			if !ok {
				n.path = number(dirfd)
				return n
			}
			n.path, n.abs = d.path, d.file
			return n
		}
		base = ""
		if ok && d.file {
			base = d.path
		}
	}
	if base != "" && raw != "" {
		n.path, n.abs = path.Join(base, raw), true
		// ".." does not lead out of a root, nor do we know what lies there.
		if root := p.dirs.root; root != "" && n.path != root && !strings.HasPrefix(n.path, root+"/") {
			n.path = root
		}
	}
	return n
}

// program is resolve for what was executed.
func (p *process) program(raw string) name {
	if raw == "/proc/self/exe" && p.path != "" {
		return name{path: p.path, raw: raw, abs: strings.HasPrefix(p.path, "/")}
	}
	// The kernel's name of what a descriptor stands for (fs/exec.c, alloc_bprm).
	if rest, ok := strings.CutPrefix(raw, "/dev/fd/"); ok {
		num, rest, _ := strings.Cut(rest, "/")
		if fd, err := strconv.Atoi(num); err == nil {
			n := p.resolve(fd, rest)
			n.raw = raw
			return n
		}
	}
	return p.resolve(atFDCWD, raw)
}

// pathAt is the name at argument i, from the descriptor at argument dir or from
// the current directory if dir is negative.
func (c *call) pathAt(dir, i int) name {
	raw, ok := c.r.Text(uint8(i))
	if !ok {
		return c.noName(i)
	}
	fd := atFDCWD
	if dir >= 0 {
		fd = c.int(dir)
	}
	return c.p.resolve(fd, raw)
}

// noName says why argument i, which should be a name, is none.
func (c *call) noName(i int) name {
	s := "<unreadable>"
	switch {
	case c.r.Untold.Arg(i):
		s = "<not said>"
	case c.u64(i) == 0:
		s = "<null>"
	case c.r.Flags&trace.NoEntry != 0:
		s = "<not captured>" // the call was not let in
	case c.r.Attached(uint8(i), trace.String) == nil:
		s = fmt.Sprintf("<%#x>", c.u64(i)) // there was nothing
	}
	return name{path: s, raw: s}
}

// pathOf is the name of what a descriptor stands for.
func (c *call) pathOf(fd int) name { return c.p.resolve(fd, "") }

// behavior is the object of an event about n.
func (n name) behavior() schemas.FileBehavior {
	f := schemas.FileBehavior{Path: Printable(n.path)}
	if n.raw != n.path {
		f.Raw = Printable(n.raw)
	}
	return f
}

func (c *call) emitFile(action string, f schemas.FileBehavior) {
	b := c.event("file", action)
	b.File = &f
	c.t.emit(b)
}

// touch notes what was done to a file, without an event.
func (c *call) touch(n name, action string) {
	if n.abs && c.r.Finished() {
		c.t.sum.file(c.p, n.path, action, c.errno)
	}
}

// act is touch with an event.
func (c *call) act(n name, action string, f schemas.FileBehavior) {
	c.touch(n, action)
	c.emitFile(action, f)
}

func (c *call) open(dir, i int, flags uint64, mode int) {
	n := c.pathAt(dir, i)
	f := n.behavior()
	f.Flags = c.r.ABI.FlagNames(sysno.SetOpen, flags)
	action := "open"
	if c.has(flags, sysno.SetOpen, "O_CREAT") || c.has(flags, sysno.SetOpen, "O_TMPFILE") {
		action = "create"
		f.Mode = octal(mode)
	}
	if c.done() {
		fd := c.result()
		f.FD = &fd
		c.t.set(c.p.fds, fd, descriptor{path: n.path, file: n.abs, cloexec: c.has(flags, sysno.SetOpen, "O_CLOEXEC")})
		c.t.sum.opened(c.p, n)
	}
	c.act(n, action, f)
}

func (c *call) openat2() {
	how, order := c.bytes(2, trace.Bytes), c.r.Order.Bytes() // struct open_how
	c.open(0, 1, u64At(how, 0, order), int(u64At(how, 8, order)))
}

func (c *call) creat() {
	flags := c.value(sysno.SetOpen, "O_CREAT") | c.value(sysno.SetOpen, "O_WRONLY") | c.value(sysno.SetOpen, "O_TRUNC")
	c.open(-1, 0, flags, c.int(1))
}

func (c *call) delete(dir, i int) {
	n := c.pathAt(dir, i)
	f := n.behavior()
	if dir >= 0 {
		if flags := c.u64(i + 1); flags != 0 {
			f.Flags = c.r.ABI.FlagNames(sysno.SetUnlinkat, flags)
		}
	}
	c.act(n, "delete", f)
}

func (c *call) rename(dir, i, toDir, j int) {
	n, to := c.pathAt(dir, i), c.pathAt(toDir, j)
	f := n.behavior()
	f.Target = Printable(to.path)
	c.act(n, "rename", f)
	if n.abs && to.abs && c.done() {
		c.t.sum.target(n.path, to.path)
		c.touch(to, "renamed")
	}
}

func (c *call) link(dir, i, toDir, j int) {
	of, n := c.pathAt(dir, i), c.pathAt(toDir, j)
	c.linked(n, of.path, "")
}

func (c *call) symlink(i, dir, j int) { c.linked(c.pathAt(dir, j), c.text(i), "symbolic") }

func (c *call) linked(n name, target, flags string) {
	f := n.behavior()
	f.Target, f.Flags = Printable(target), flags
	c.act(n, "link", f)
	if n.abs && c.done() {
		c.t.sum.target(n.path, target)
	}
}

func (c *call) mkdir(dir, i, mode int) {
	n := c.pathAt(dir, i)
	f := n.behavior()
	f.Mode = octal(mode)
	c.act(n, "mkdir", f)
}

func (c *call) mknod(dir, i, mode int) {
	n := c.pathAt(dir, i)
	f := n.behavior()
	f.Mode, f.Flags = octal(mode), "mknod"
	c.act(n, "create", f)
}

func (c *call) chmod(n name, mode int) {
	f := n.behavior()
	f.Mode = octal(mode)
	c.act(n, "chmod", f)
}

func (c *call) chown(n name, i int) {
	f := n.behavior()
	f.Owner = strconv.Itoa(c.int(i)) + ":" + strconv.Itoa(c.int(i+1))
	c.act(n, "chown", f)
}

func (c *call) truncate(n name) {
	c.touch(n, "truncate")
}

// kernelsOwn are the file systems that a sample makes no files on.
var kernelsOwn = []string{"proc", "sysfs", "devpts", "cgroup", "cgroup2", "debugfs", "tracefs", "securityfs", "mqueue", "bpf"}

func (c *call) mount() {
	// MS_REMOUNT, MS_BIND, MS_MOVE and four for propagation mount nothing new, and
	// MS_MGC_VAL takes the upper half (include/uapi/linux/mount.h).
	const old, magic, upper = 1<<5 | 1<<12 | 1<<13 | 1<<17 | 1<<18 | 1<<19 | 1<<20, 0xc0ed0000, 0xffff0000
	flags := c.u64(3)
	if flags&upper == magic {
		flags &^= upper
	}
	if flags&old == 0 && !slices.Contains(kernelsOwn, c.text(2)) {
		c.fsmount()
	}
	c.mountAt(c.pathAt(-1, 1), c.text(0), c.r.ABI.FlagNames(sysno.SetMount, c.u64(3)))
}

// fsmount makes a file system that is not the overlay which is collected.
func (c *call) fsmount() {
	if c.done() {
		c.t.sum.gap("a file system was mounted: the files on it are not collected")
	}
}

func (c *call) mountAt(n name, source, flags string) {
	f := n.behavior()
	f.Target, f.Flags = Printable(source), flags
	c.act(n, "mount", f)
}

func (c *call) chdir() {
	n := c.pathOf(c.int(0))
	if c.desc.Name == "chdir" {
		n = c.pathAt(-1, 0)
	}
	if c.done() {
		c.p.dirs.cwd = ""
		if n.abs {
			c.p.dirs.cwd = n.path
		}
	}
	c.touch(n, "chdir")
}

func (c *call) chroot() {
	n := c.pathAt(-1, 0)
	if c.done() && n.abs {
		c.p.dirs.root = strings.TrimSuffix(n.path, "/")
	}
	c.touch(n, "chroot")
}

func (c *call) read(fd int) {
	if d, ok := c.fd(fd); ok && d.file && c.r.Finished() {
		c.t.sum.transfer(c.p, d.path, "read", c.errno, c.r.Result)
	}
}

// write is a write of what argument i points to.
func (c *call) write(fd, i int) {
	d, ok := c.fd(fd)
	if ok && d.sock != nil {
		c.sent(fd, d, nil, c.bytes(i, trace.Bytes))
		return
	}
	n := c.pathOf(fd)
	f := schemas.FileBehavior{Path: Printable(n.path), FD: &fd, Data: c.kept(i)}
	if c.done() {
		f.Bytes = c.r.Result
	}
	switch {
	case isMem(n.path):
		c.emitMemory("process_write", schemas.MemoryBehavior{Name: f.Path, Length: uint64(max(0, f.Bytes))})
	case c.done() && (n.path == "/proc/self/comm" || n.path == "/proc/thread-self/comm"):
		c.rename1(strings.TrimRight(string(f.Data), "\n"))
	}
	if ok && d.file && c.r.Finished() {
		c.t.sum.transfer(c.p, n.path, "write", c.errno, c.r.Result)
	}
	c.emitFile("write", f)
}

// kept is a copy of the bytes of argument i.
func (c *call) kept(i int) []byte { return append([]byte(nil), c.bytes(i, trace.Bytes)...) }

// isMem reports whether a file is a process' memory.
func isMem(p string) bool {
	return strings.HasPrefix(p, "/proc/") && strings.HasSuffix(p, "/mem")
}

// copied is bytes that went from one descriptor to another within the kernel.
func (c *call) copied(from, to int) {
	if !c.done() || c.r.Result == 0 {
		return
	}
	if d, ok := c.fd(from); ok && d.file {
		c.t.sum.transfer(c.p, d.path, "read", "", c.r.Result)
	}
	d, ok := c.fd(to)
	switch {
	case ok && d.sock != nil:
		c.sent(to, d, nil, nil)
	case ok && (d.file || isMemfd(d.path)):
		if d.file {
			c.t.sum.transfer(c.p, d.path, "write", "", c.r.Result)
		}
		c.emitFile("write", schemas.FileBehavior{Path: Printable(d.path), FD: &to, Bytes: c.r.Result})
	}
}

// isMemfd reports whether that is what a file in memory is called here.
func isMemfd(p string) bool { return strings.HasPrefix(p, "memfd:") }

func octal(mode int) string { return "0" + strconv.FormatInt(int64(mode)&0o7777777, 8) }
