// SPDX-License-Identifier: Apache-2.0

package fleet

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Reap ends every process that carries this sandbox' mark: supervisors and
// QEMUs that outlived a sandboxd that was killed. It must run before the first
// machine. It returns how many there were.
func (f *Fleet) Reap() (int, error) {
	seen := map[int]bool{}
	deadline := time.Now().Add(10 * time.Second)
	for {
		pids, err := marked(markPrefix(f.opts.ID))
		if err != nil {
			return len(seen), err
		}
		if len(pids) == 0 {
			return len(seen), nil
		}
		for _, pid := range pids {
			seen[pid] = true
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
		if time.Now().After(deadline) {
			return len(seen), fmt.Errorf("processes %v of a dead sandbox do not end", pids)
		}
		time.Sleep(10 * time.Millisecond) // the kernel gives a stranger no event for its end
	}
}

// marked lists the processes one of whose arguments is or holds the mark.
func marked(prefix string) ([]int, error) {
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil, err
	}
	var out []int
	for _, d := range dirs {
		pid, err := strconv.Atoi(filepath.Base(d))
		if err != nil || pid == os.Getpid() {
			continue
		}
		b, err := os.ReadFile(filepath.Join(d, "cmdline"))
		if err != nil {
			continue // gone meanwhile
		}
		for _, arg := range bytes.Split(b, []byte{0}) {
			if s := string(arg); strings.HasPrefix(s, prefix) || strings.HasPrefix(s, "guest="+prefix) {
				out = append(out, pid)
				break
			}
		}
	}
	return out, nil
}
