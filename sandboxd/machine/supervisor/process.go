// SPDX-License-Identifier: Apache-2.0

package supervisor

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"

	"github.com/petri-sandbox/petri/sandboxd/child"
	"github.com/petri-sandbox/petri/schemas"
)

// Privileges say what a supervisor is started as.
type Privileges struct {
	// Args are the arguments with which this program's main calls [Main]. The
	// mark is added as the last one.
	Args []string
	// UID is the user and group to become, if we are root; 0 stays root.
	UID int
	// Groups are further groups of that user: the one that may use KVM.
	Groups []uint32
}

// processNamespaces are what a supervisor is cut off in. Its process namespace
// also ends its QEMU with it, whatever ends it.
const processNamespaces = syscall.CLONE_NEWPID | syscall.CLONE_NEWNET | syscall.CLONE_NEWIPC | syscall.CLONE_NEWUTS

// Probe starts a process as a supervisor would be, ends it, and returns what
// keeps supervisors from the host here.
func Probe(p Privileges, mark string) (schemas.Isolation, error) {
	proc, isolation, err := startProcess(p, mark, nil)
	if err != nil {
		return schemas.Isolation{}, err
	}
	proc.Kill()
	return isolation, nil
}

// startProcess starts a supervisor as unprivileged as we can: as root in
// namespaces and as a user of its own; else in namespaces of a user namespace;
// and where the kernel allows neither, as it is. It says which of them it was.
func startProcess(p Privileges, mark string, inherit []*os.File) (*child.Process, schemas.Isolation, error) {
	var errs []error
	for _, w := range ways(p) {
		// Another user may not be let into the directory where we lie.
		cmd := exec.Command("/proc/self/exe", append(slices.Clone(p.Args), mark)...)
		cmd.Args[0] = os.Args[0]
		cmd.ExtraFiles, cmd.SysProcAttr = inherit, w.attr
		proc, err := child.Start(cmd)
		if err == nil {
			if len(errs) > 0 {
				w.isolation.Reason = "the host refuses namespaces: " + errors.Join(errs...).Error()
			}
			return proc, w.isolation, nil
		}
		errs = append(errs, err)
		if !errors.Is(err, syscall.EPERM) && !errors.Is(err, syscall.ENOSPC) && !errors.Is(err, syscall.EINVAL) {
			break
		}
	}
	err := fmt.Errorf("start a supervisor: %w", errors.Join(errs...))
	if errors.Is(err, syscall.EACCES) {
		err = fmt.Errorf("%w (machines run as another user, who must be able to run this program: chmod a+rx %s)", err, os.Args[0])
	}
	return nil, schemas.Isolation{}, err
}

// way is one to start a supervisor.
type way struct {
	attr      *syscall.SysProcAttr
	isolation schemas.Isolation
}

// ways are those to start a supervisor, the best first.
func ways(p Privileges) []way {
	plain, cut := &syscall.SysProcAttr{}, &syscall.SysProcAttr{Cloneflags: processNamespaces}
	namespaces := []string{"pid", "net", "ipc", "uts"}
	user := schemas.UserSandbox
	switch {
	case os.Geteuid() != 0:
		cut.Cloneflags |= syscall.CLONE_NEWUSER
		cut.UidMappings = []syscall.SysProcIDMap{{ContainerID: os.Getuid(), HostID: os.Getuid(), Size: 1}}
		cut.GidMappings = []syscall.SysProcIDMap{{ContainerID: os.Getgid(), HostID: os.Getgid(), Size: 1}}
		namespaces = append([]string{"user"}, namespaces...)
	case p.UID != 0:
		cut.Credential = &syscall.Credential{Uid: uint32(p.UID), Gid: uint32(p.UID), Groups: p.Groups}
		plain.Credential = cut.Credential
		user = schemas.UserOwn
	default:
		user = schemas.UserRoot
	}
	return []way{
		{cut, schemas.Isolation{User: user, Namespaces: namespaces}},
		{plain, schemas.Isolation{User: user, Namespaces: []string{}}},
	}
}

// Marked reports whether the arguments of a process are those of a supervisor
// that these privileges started, with a mark that begins so.
func (p Privileges) Marked(args []string, mark string) bool {
	n := len(p.Args)
	return len(args) == n+2 && slices.Equal(args[1:n+1], p.Args) && strings.HasPrefix(args[n+1], mark)
}
