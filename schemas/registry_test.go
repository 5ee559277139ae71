// SPDX-License-Identifier: Apache-2.0

package schemas_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"reflect"
	"strconv"
	"strings"
	"testing"

	"github.com/petri-sandbox/petri/schemas"
)

func TestTypesAreNamedOnceAndFit(t *testing.T) {
	seen := map[string]bool{}
	for _, info := range schemas.Types() {
		if seen[info.Name] {
			t.Errorf("%s is listed twice", info.Name)
		}
		seen[info.Name] = true
		if v, ok := info.Value.(schemas.Typed); ok && v.EventType() != info.Name {
			t.Errorf("the value of %s is of type %s", info.Name, v.EventType())
		} else if !ok && info.Form == schemas.FormEvent {
			t.Errorf("the value of %s has no type", info.Name)
		}
		if got := reflect.TypeOf(info.New()); got != reflect.PointerTo(reflect.TypeOf(info.Value)) {
			t.Errorf("New of %s is a %s", info.Name, got)
		}
	}
}

// TestTypesAreComplete compares the list with the source: every type that an
// event can have, and every name of a context event.
func TestTypesAreComplete(t *testing.T) {
	goTypes, names := map[string]bool{}, map[string]bool{}
	for _, info := range schemas.Types() {
		goTypes[reflect.TypeOf(info.Value).Name()] = true
		names[info.Name] = true
	}
	for _, action := range schemas.BehaviorActions {
		if !names["petri.behavior."+action+".v1"] {
			t.Errorf("%s is not listed", action)
		}
	}
	files := parseSource(t)
	for _, f := range files {
		for _, d := range f.Decls {
			switch d := d.(type) {
			case *ast.FuncDecl:
				if d.Name.Name == "EventType" && d.Recv != nil {
					typ := strings.TrimPrefix(exprString(d.Recv.List[0].Type), "*")
					if !goTypes[typ] {
						t.Errorf("%s has an event type and is not listed", typ)
					}
				}
			case *ast.GenDecl:
				for name, value := range stringConstants(d) {
					if strings.HasPrefix(name, "Event") && !names[schemas.ContextType(value)] {
						t.Errorf("%s, %q, is not listed", name, value)
					}
					if strings.HasSuffix(name, "Schema") && !names[value] {
						t.Errorf("%s, %q, is not listed", name, value)
					}
				}
			}
		}
	}
}

func parseSource(t *testing.T) []*ast.File {
	t.Helper()
	entries, err := os.ReadDir(".")
	if err != nil {
		t.Fatal(err)
	}
	var files []*ast.File
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), ".go") || strings.HasSuffix(e.Name(), "_test.go") {
			continue
		}
		f, err := parser.ParseFile(token.NewFileSet(), e.Name(), nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, f)
	}
	return files
}

func exprString(e ast.Expr) string {
	if s, ok := e.(*ast.StarExpr); ok {
		e = s.X
	}
	if id, ok := e.(*ast.Ident); ok {
		return id.Name
	}
	return ""
}

func stringConstants(d *ast.GenDecl) map[string]string {
	out := map[string]string{}
	if d.Tok != token.CONST {
		return out
	}
	for _, s := range d.Specs {
		v := s.(*ast.ValueSpec)
		for i, n := range v.Names {
			if i >= len(v.Values) {
				continue
			}
			if lit, ok := v.Values[i].(*ast.BasicLit); ok && lit.Kind == token.STRING {
				if text, err := strconv.Unquote(lit.Value); err == nil {
					out[n.Name] = text
				}
			}
		}
	}
	return out
}

func TestTypesIsACopy(t *testing.T) {
	schemas.Types()[0].Name = "changed"
	if got := schemas.Types()[0].Name; got == "changed" {
		t.Error("a caller changed the registry")
	}
}
