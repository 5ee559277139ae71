// SPDX-License-Identifier: Apache-2.0

package fleet

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestParseMeminfo(t *testing.T) {
	const text = "MemTotal:       24683704 kB\nMemFree:        18471448 kB\nMemAvailable:   23899792 kB\nHugePages_Total:       0\n"
	m, err := parseMeminfo(strings.NewReader(text))
	if want := (Memory{Total: 24683704 << 10, Free: 23899792 << 10}); err != nil || m != want {
		t.Errorf("%+v, %v; want %+v", m, err, want)
	}
	for _, bad := range []string{"", "MemFree: 1 kB\n", "MemTotal: x kB\n", "MemTotal: -1 kB\n", "MemTotal: 1 kB\nMemAvailable: 99999999999999999999 kB\n"} {
		if m, err := parseMeminfo(strings.NewReader(bad)); err == nil {
			t.Errorf("%q is %+v", bad, m)
		}
	}
}

// TestCgroupMemory checks that a container's limit counts, not its host's
// memory.
func TestCgroupMemory(t *testing.T) {
	host := Memory{Total: 16 << 30, Free: 8 << 30}
	for _, tt := range []struct {
		max, current, stat string
		want               Memory
	}{
		{"max", "1000", "", host},
		{"68719476736", "1000", "", host},
		{"4294967296", "1073741824", "anon 1\n", Memory{Total: 4 << 30, Free: 3 << 30}},
		{"4294967296", "4294967296", "active_file 1\ninactive_file 2147483648\n", Memory{Total: 4 << 30, Free: 2 << 30}},
		{"4294967296", "1073741824", "inactive_file 8589934592\n", Memory{Total: 4 << 30, Free: 4 << 30}},
		{"4294967296", "1073741824", "inactive_file -1\n", Memory{Total: 4 << 30, Free: 3 << 30}},
		{"1073741824", "2147483648", "", Memory{Total: 1 << 30}},
		{"", "", "", host}, // no such group
	} {
		root := t.TempDir()
		dir := cgroupDir(root, "1:name=x:/other\n0::/a/../b\n")
		if want := filepath.Join(root, "b"); dir != want {
			t.Fatalf("the group's directory is %s, want %s", dir, want)
		}
		if tt.max != "" {
			if err := os.Mkdir(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			for name, text := range map[string]string{"memory.max": tt.max, "memory.current": tt.current, "memory.stat": tt.stat} {
				if err := os.WriteFile(filepath.Join(dir, name), []byte(text+"\n"), 0o644); err != nil {
					t.Fatal(err)
				}
			}
		}
		if got := host.within(dir); got != tt.want {
			t.Errorf("limit %s: %+v, want %+v", tt.max, got, tt.want)
		}
	}
	if m, err := HostMemory(); err != nil || m.Free <= 0 || m.Free > m.Total {
		t.Errorf("this host's: %+v, %v", m, err)
	}
}
