// SPDX-License-Identifier: Apache-2.0

package internet_test

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// The guest's internet must have no way to a real network. allowedImports are
// all packages of others that it may use; of those with a list, only the names
// in the list. Think twice before adding one that can open a socket.
var allowedImports = map[string][]string{
	"bufio":           nil,
	"bytes":           nil,
	"context":         nil,
	"encoding/binary": nil,
	"encoding/hex":    nil,
	"errors":          nil,
	"fmt":             nil,
	"io":              nil,
	"math":            nil,
	"math/bits":       nil,
	"net/netip":       nil,
	"sync":            nil,
	"syscall":         {"ECONNRESET", "EPIPE"},
	"time":            nil,

	"github.com/petri-sandbox/petri/sandboxd/capture":        nil,
	"github.com/petri-sandbox/petri/sandboxd/internet/dhcp4": nil,
}

// forbiddenDeps may not even be linked. Package syscall is in every program.
var forbiddenDeps = []string{"net", "net/http", "crypto/tls", "os/exec", "plugin", "golang.org/x/sys/unix"}

func TestNothingCanDial(t *testing.T) {
	checked := 0
	for _, root := range []string{".", "../capture"} {
		err := filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			switch filepath.Ext(path) {
			case ".go":
				if strings.HasSuffix(path, "_test.go") {
					return nil
				}
				src, err := os.ReadFile(path)
				if err != nil {
					return err
				}
				for _, v := range violations(t, path, src) {
					t.Error(v)
				}
				checked++
			case ".s", ".S", ".c", ".syso":
				t.Errorf("%s is not Go", path)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if checked < 7 {
		t.Errorf("only %d files were checked", checked)
	}
}

func TestNothingThatDialsIsLinked(t *testing.T) {
	out, err := exec.CommandContext(t.Context(), "go", "list", "-deps", "./...").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	deps := strings.Fields(string(out))
	if !slices.Contains(deps, "net/netip") {
		t.Fatalf("go list says nothing of use: %s", deps)
	}
	for _, d := range forbiddenDeps {
		if slices.Contains(deps, d) {
			t.Errorf("package internet depends on %s", d)
		}
	}
}

// The check itself is checked: each of these must be found.
func TestDialingIsFound(t *testing.T) {
	for name, src := range map[string]string{
		"net":          `import "net"; var _, _ = net.Dial("tcp", "192.0.2.1:80")`,
		"net_type":     `import "net"; var _ net.HardwareAddr`,
		"renamed":      `import n "net"; var _ n.Dialer`,
		"dot":          `import . "net"; var _ Dialer`,
		"blank":        `import _ "net/http"`,
		"http":         `import "net/http"; var _, _ = http.Get("http://192.0.2.1")`,
		"unix":         `import "golang.org/x/sys/unix"; var _ = unix.Connect`,
		"syscall":      `import "syscall"; var _ = syscall.Connect`,
		"syscall_as":   `import sc "syscall"; var _ = sc.Syscall`,
		"syscall_dot":  `import . "syscall"; var _ = Connect`,
		"syscall_mix":  `import "syscall"; var _ = syscall.EPIPE; func f() { x := syscall.Socket; _ = x }`,
		"dot_allowed":  `import . "io"; var _ Reader`,
		"unsafe":       `import _ "unsafe"`,
		"linkname":     "//go:linkname connect syscall.connect\nfunc connect()",
		"cgo":          `import "C"`,
		"exec":         `import "os/exec"; var _ = exec.Command`,
		"os":           `import "os"; var _ = os.OpenFile`,
		"other_module": `import "gvisor.dev/gvisor/pkg/tcpip/stack"; var _ stack.Stack`,
	} {
		if len(violations(t, name, []byte("package internet\n"+src))) == 0 {
			t.Errorf("%s: not found", name)
		}
	}
	if v := violations(t, "good", []byte("package internet\nimport \"syscall\"; var _ = syscall.EPIPE")); len(v) > 0 {
		t.Errorf("good code: %v", v)
	}
}

// violations lists what a source file uses beyond allowedImports.
func violations(t *testing.T, path string, src []byte) (out []string) {
	t.Helper()
	set := token.NewFileSet()
	file, err := parser.ParseFile(set, path, src, parser.ParseComments)
	if err != nil {
		t.Fatal(err)
	}
	report := func(at token.Pos, format string, args ...any) {
		out = append(out, fmt.Sprintf("%s: %s", set.Position(at), fmt.Sprintf(format, args...)))
	}
	limited := map[string]string{} // local name of a package with a list
	for _, imp := range file.Imports {
		name, err := strconv.Unquote(imp.Path.Value)
		if err != nil {
			t.Fatal(err)
		}
		names, ok := allowedImports[name]
		if !ok {
			report(imp.Pos(), "imports %s", name)
			continue
		}
		local := name[strings.LastIndexByte(name, '/')+1:]
		if imp.Name != nil {
			local = imp.Name.Name
		}
		if local == "." {
			report(imp.Pos(), "imports the names of %s", name)
		}
		if names != nil {
			limited[local] = name
		}
	}
	ast.Inspect(file, func(n ast.Node) bool {
		if s, ok := n.(*ast.SelectorExpr); ok {
			if x, ok := s.X.(*ast.Ident); ok && limited[x.Name] != "" && !slices.Contains(allowedImports[limited[x.Name]], s.Sel.Name) {
				report(s.Pos(), "uses %s.%s", limited[x.Name], s.Sel.Name)
			}
		}
		return true
	})
	for _, group := range file.Comments {
		for _, c := range group.List {
			if strings.HasPrefix(c.Text, "//go:linkname") || strings.HasPrefix(c.Text, "//go:cgo") {
				report(c.Pos(), "has a directive %s", c.Text)
			}
		}
	}
	return out
}
