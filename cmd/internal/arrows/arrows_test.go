// SPDX-License-Identifier: Apache-2.0

package arrows_test

import (
	"os/exec"
	"strings"
	"testing"
)

const module = "github.com/petri-sandbox/petri"

// layer names the directory below the module's root that a package lies in.
func layer(pkg string) string {
	rest, ok := strings.CutPrefix(pkg, module+"/")
	if !ok {
		return ""
	}
	first, _, _ := strings.Cut(rest, "/")
	return first
}

// allowed are the import arrows of docs/architecture.md:
// schemas ← bus · sandboxd · analyzers · reporters ← cmd.
var allowed = map[string][]string{
	"schemas":   {"schemas"},
	"bus":       {"bus", "schemas"},
	"sandboxd":  {"sandboxd", "schemas"},
	"analyzers": {"analyzers", "schemas"},
	"reporters": {"reporters", "schemas"},
	"cmd":       {"cmd", "bus", "sandboxd", "analyzers", "reporters", "schemas"},
}

func TestImportArrows(t *testing.T) {
	out := list(t, "{{.ImportPath}}: {{join .Imports \" \"}}", "./...")
	seen := map[string]bool{}
	for _, line := range strings.Split(strings.TrimSpace(out), "\n") {
		pkg, imports, _ := strings.Cut(line, ": ")
		from := layer(pkg)
		if _, ok := allowed[from]; !ok {
			t.Errorf("package %s lies in no known directory", pkg)
			continue
		}
		seen[from] = true
		for _, imp := range strings.Fields(imports) {
			to := layer(imp)
			if to == "" {
				if from == "schemas" && !standard(t, imp) {
					t.Errorf("%s imports %s: schemas imports only the standard library", pkg, imp)
				}
				continue
			}
			if !contains(allowed[from], to) {
				t.Errorf("%s imports %s: %s may not import %s", pkg, imp, from, to)
			}
		}
	}
	for from := range allowed {
		if !seen[from] {
			t.Errorf("no package in %s was checked", from)
		}
	}
}

// TestAnalyzersNeverSeeNATS keeps the analyzers pure: nothing that they are
// built from may reach the bus.
func TestAnalyzersNeverSeeNATS(t *testing.T) {
	for _, tree := range []string{"./analyzers/...", "./sandboxd/...", "./reporters/...", "./schemas/..."} {
		for _, dep := range strings.Fields(list(t, "{{join .Deps \" \"}}", tree)) {
			if strings.Contains(dep, "nats-io/") {
				t.Errorf("%s depends on %s", tree, dep)
			}
		}
	}
}

func list(t *testing.T, format string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", append([]string{"list", "-e", "-f", format}, args...)...)
	cmd.Dir = "../../.."
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	return string(out)
}

func standard(t *testing.T, imp string) bool {
	t.Helper()
	first, _, _ := strings.Cut(imp, "/")
	return !strings.Contains(first, ".")
}

func contains(list []string, s string) bool {
	for _, l := range list {
		if l == s {
			return true
		}
	}
	return false
}
