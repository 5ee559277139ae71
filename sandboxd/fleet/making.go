// SPDX-License-Identifier: Apache-2.0

package fleet

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// Making reports whether a fleet is making a template in a cache directory at
// this moment: one that is not finished lies there, and its lock is held. It is
// for those who wait and want to know for what.
func Making(cache string) bool {
	files, err := os.ReadDir(filepath.Join(cache, "warm"))
	if err != nil {
		return false
	}
	begun, held := false, false
	for _, f := range files {
		switch {
		case strings.HasPrefix(f.Name(), ".new-"):
			begun = true
		case strings.HasSuffix(f.Name(), ".lock"):
			held = held || locked(filepath.Join(cache, "warm", f.Name()))
		}
	}
	return begun && held
}

func locked(path string) bool {
	f, err := os.Open(path)
	if err != nil {
		return false
	}
	defer f.Close()
	return errors.Is(syscall.Flock(int(f.Fd()), syscall.LOCK_SH|syscall.LOCK_NB), syscall.EWOULDBLOCK)
}
