// SPDX-License-Identifier: Apache-2.0

package fleet

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Memory is the host's, in bytes.
type Memory struct {
	Total, Free int64 // Free: could be taken without anybody's loss
}

// HostMemory is what the kernel says of it, and the limit of the control group
// that this process is in, if that is less.
func HostMemory() (Memory, error) {
	f, err := os.Open("/proc/meminfo")
	if err != nil {
		return Memory{}, err
	}
	defer f.Close()
	m, err := parseMeminfo(f)
	if err != nil {
		return Memory{}, err
	}
	b, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return Memory{}, err
	}
	return m.within(cgroupDir("/sys/fs/cgroup", string(b))), nil
}

// parseMeminfo reads /proc/meminfo: proc(5).
func parseMeminfo(r io.Reader) (Memory, error) {
	var m Memory
	s := bufio.NewScanner(io.LimitReader(r, 64<<10))
	for s.Scan() {
		f := strings.Fields(s.Text())
		if len(f) < 2 {
			continue
		}
		var into *int64
		switch f[0] {
		case "MemTotal:":
			into = &m.Total
		case "MemAvailable:":
			into = &m.Free
		default:
			continue
		}
		n, err := strconv.ParseInt(f[1], 10, 64)
		if err != nil || n < 0 || n > 1<<50 {
			return Memory{}, fmt.Errorf("read the host's memory: %q", s.Text())
		}
		*into = n << 10
	}
	if m.Total == 0 {
		return Memory{}, errors.Join(errors.New("read the host's memory: no total"), s.Err())
	}
	return m, nil
}

// cgroupDir is the directory of the control group that /proc/self/cgroup names,
// of version 2 (https://docs.kernel.org/admin-guide/cgroup-v2.html).
func cgroupDir(root, text string) string {
	for _, line := range strings.Split(text, "\n") {
		if path, ok := strings.CutPrefix(line, "0::"); ok {
			return filepath.Join(root, filepath.Clean("/"+path))
		}
	}
	return root
}

// within applies the limit of a control group, if it has one.
func (m Memory) within(dir string) Memory {
	limit, err := readNumber(filepath.Join(dir, "memory.max"))
	if err != nil || limit >= m.Total {
		return m // max, or no such group
	}
	used, err := readNumber(filepath.Join(dir, "memory.current"))
	if err != nil {
		return m
	}
	// Pages of files that nobody has used lately count as used, and go when room is
	// needed: reading images alone fills a group with them.
	used -= min(used, idlePages(filepath.Join(dir, "memory.stat")))
	return Memory{Total: limit, Free: min(m.Free, max(0, limit-used))}
}

// idlePages is what a group's memory.stat says of them; 0 if it does not.
func idlePages(path string) int64 {
	b, err := os.ReadFile(path)
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(b)) {
		if text, ok := strings.CutPrefix(line, "inactive_file "); ok {
			n, err := strconv.ParseInt(strings.TrimSpace(text), 10, 64)
			if err != nil {
				return 0
			}
			return max(0, n)
		}
	}
	return 0
}

func readNumber(path string) (int64, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	return strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
}

// spare says whether there is memory for machines that wait.
type spare int

const (
	scarce spare = iota // those that wait must make room
	enough              // for those that there are
	ample               // for one more
)

// machineMemory is what a machine may take beside its guest's RAM: the
// supervisor, QEMU and its translated code.
const machineMemory = 256 << 20

// spare looks whether a machine whose guest has so much memory may be added.
func (f *Fleet) spare(memory int64) (spare, error) {
	m, err := f.opts.HostMemory()
	switch {
	case err != nil:
		return scarce, err
	case m.Free < m.Total/8:
		return scarce, nil
	case m.Free-memory-machineMemory < m.Total/4:
		return enough, nil
	}
	return ample, nil
}
