// SPDX-License-Identifier: Apache-2.0

package image

import (
	"os"
	"path/filepath"
)

// DefaultCache is where images are kept if nothing else is said: the user's
// cache directory, of root the system's (XDG Base Directory Specification).
func DefaultCache() string {
	if d := os.Getenv("XDG_CACHE_HOME"); d != "" {
		return filepath.Join(d, "petri")
	}
	if os.Geteuid() == 0 {
		return "/var/cache/petri"
	}
	if h, err := os.UserHomeDir(); err == nil {
		return filepath.Join(h, ".cache", "petri")
	}
	return filepath.Join(".cache", "petri")
}
