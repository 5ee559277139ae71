// SPDX-License-Identifier: Apache-2.0

package fleet

import (
	"os"
	"path/filepath"
	"strings"

	"github.com/petri-sandbox/petri/sandboxd/internal/flock"
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
			held = held || flock.Locked(filepath.Join(cache, "warm", f.Name()))
		}
	}
	return begun && held
}
