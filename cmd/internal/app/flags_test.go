// SPDX-License-Identifier: Apache-2.0

package app_test

import (
	"os"
	"testing"

	"github.com/petri-sandbox/petri/cmd/internal/app"
)

// TestDaemonFlags starts daemons with what they cannot do: that is bad input, which
// no server is asked about.
func TestDaemonFlags(t *testing.T) {
	args := os.Args
	defer func() { os.Args = args }()
	for _, bad := range [][]string{
		{"--accel", "xen"}, {"--memory", "1"}, {"--memory", "much"}, {"--parallel", "0"}, {"--speed", "-1"}, {"more"},
	} {
		os.Args = append([]string{"sandboxd", "--nats", "nats://127.0.0.1:1", "--data", t.TempDir()}, bad...)
		if code := app.Main("sandboxd", "runs samples"); code != 2 {
			t.Errorf("sandboxd %q ends with %d", bad, code)
		}
	}
}
