// SPDX-License-Identifier: Apache-2.0

package jail

import (
	"errors"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Landlock is the version of Landlock that the kernel has; 0: none.
// https://docs.kernel.org/userspace-api/landlock.html
func Landlock() int {
	v, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION)
	if errno != 0 {
		return 0
	}
	return int(v)
}

const (
	readFile = unix.LANDLOCK_ACCESS_FS_READ_FILE
	readTree = readFile | unix.LANDLOCK_ACCESS_FS_READ_DIR | unix.LANDLOCK_ACCESS_FS_EXECUTE
	// everything that the first version knows
	allAccess = 1<<13 - 1
)

// ReadOnly takes from the calling thread, and from what it starts, every access
// to files but that of reading below some paths, of running programs there, and
// of reading some open files anew. Paths that are not there are passed over. The
// thread must have given up new privileges, and the goroutine be locked to it.
// It reports whether the kernel can do that.
func ReadOnly(paths []string, files []*os.File) (bool, error) {
	version := Landlock()
	if version == 0 {
		return false, nil
	}
	attr := unix.LandlockRulesetAttr{Handled_access_fs: allAccess}
	if version >= 2 {
		attr.Handled_access_fs |= unix.LANDLOCK_ACCESS_FS_REFER
	}
	if version >= 3 {
		attr.Handled_access_fs |= unix.LANDLOCK_ACCESS_FS_TRUNCATE
	}
	fd, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr.Handled_access_fs), 0)
	if errno != 0 {
		return false, fmt.Errorf("make landlock rules: %w", errno)
	}
	rules := int(fd)
	defer unix.Close(rules)
	for _, p := range paths {
		f, err := unix.Open(p, unix.O_PATH|unix.O_CLOEXEC, 0)
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EACCES) {
			continue
		}
		if err != nil {
			return false, fmt.Errorf("open %q for a landlock rule: %w", p, err)
		}
		err = allow(rules, f, readTree)
		unix.Close(f)
		if err != nil {
			return false, fmt.Errorf("landlock rule for %q: %w", p, err)
		}
	}
	for _, f := range files {
		if err := allow(rules, int(f.Fd()), readFile); err != nil {
			return false, fmt.Errorf("landlock rule for %q: %w", f.Name(), err)
		}
	}
	if _, _, errno := unix.Syscall(unix.SYS_LANDLOCK_RESTRICT_SELF, uintptr(rules), 0, 0); errno != 0 {
		return false, fmt.Errorf("enter landlock: %w", errno)
	}
	return true, nil
}

// allow adds a rule. A file takes fewer rights than a directory.
func allow(rules, fd int, access uint64) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		access &^= unix.LANDLOCK_ACCESS_FS_READ_DIR
	}
	if st.Mode&unix.S_IFMT == unix.S_IFCHR { // such as /dev/null
		access |= unix.LANDLOCK_ACCESS_FS_WRITE_FILE
	}
	rule := unix.LandlockPathBeneathAttr{Allowed_access: access, Parent_fd: int32(fd)}
	_, _, errno := unix.Syscall6(unix.SYS_LANDLOCK_ADD_RULE, uintptr(rules), unix.LANDLOCK_RULE_PATH_BENEATH, uintptr(unsafe.Pointer(&rule)), 0, 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}
