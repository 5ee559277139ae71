// SPDX-License-Identifier: Apache-2.0

package generate

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
)

// source is what reflection cannot tell of package schemas.
type source struct {
	comments map[string]string   // of Type and of Type.Field
	words    map[string][]string // of a named string type: its constants
}

func readSource(dir string) (*source, error) {
	paths, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil {
		return nil, err
	}
	src := &source{comments: map[string]string{}, words: map[string][]string{}}
	fset := token.NewFileSet()
	for _, p := range paths {
		if strings.HasSuffix(p, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(fset, p, nil, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			return nil, fmt.Errorf("read the types' source: %w", err)
		}
		for _, d := range f.Decls {
			if g, ok := d.(*ast.GenDecl); ok {
				src.declaration(g)
			}
		}
	}
	if len(src.comments) == 0 {
		return nil, fmt.Errorf("%q holds no commented Go types: it is not the directory of package schemas", dir)
	}
	return src, nil
}

func (src *source) declaration(g *ast.GenDecl) {
	for _, spec := range g.Specs {
		switch s := spec.(type) {
		case *ast.TypeSpec:
			doc := s.Doc
			if doc == nil {
				doc = g.Doc
			}
			src.comments[s.Name.Name] = text(doc)
			if st, ok := s.Type.(*ast.StructType); ok {
				src.fields(s.Name.Name, st)
			}
		case *ast.ValueSpec:
			typ, ok := s.Type.(*ast.Ident)
			if g.Tok != token.CONST || !ok {
				continue
			}
			for _, v := range s.Values {
				if lit, ok := v.(*ast.BasicLit); ok && lit.Kind == token.STRING {
					if word, err := strconv.Unquote(lit.Value); err == nil {
						src.words[typ.Name] = append(src.words[typ.Name], word)
					}
				}
			}
		}
	}
}

// fields takes the comment behind a field, or the one above it.
func (src *source) fields(typ string, st *ast.StructType) {
	for _, f := range st.Fields.List {
		doc := f.Comment
		if doc == nil {
			doc = f.Doc
		}
		for _, n := range f.Names {
			src.comments[typ+"."+n.Name] = text(doc)
		}
	}
}

// link is a reference of a Go comment to another name.
var link = regexp.MustCompile(`\[([A-Za-z][A-Za-z.]*)\]`)

// text is a comment as one line, without what only Go's tools understand.
func text(doc *ast.CommentGroup) string {
	return link.ReplaceAllString(strings.Join(strings.Fields(doc.Text()), " "), "$1")
}
