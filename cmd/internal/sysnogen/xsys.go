// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"go/ast"
	"go/constant"
	"go/parser"
	"go/token"
	"path/filepath"
	"strconv"
	"strings"
)

// abi is one calling convention: Go's name of it in package sysno, the name
// for people, the file suffix in x/sys, and what the kernel's bits are.
type abi struct {
	ident string
	name  string
	xsys  string
	bits  int
}

// abis are the ABIs in the order of their numbers, which never change: traces
// hold them. A new one comes at the end.
var abis = []abi{
	{ident: "AMD64", name: "amd64", xsys: "amd64", bits: 64},
	{ident: "I386", name: "i386", xsys: "386", bits: 32},
	{ident: "X32", name: "x32", xsys: "amd64", bits: 32},
	{ident: "ARM64", name: "arm64", xsys: "arm64", bits: 64},
	{ident: "ARM", name: "arm", xsys: "arm", bits: 32},
	{ident: "MIPSO32", name: "mips_o32", xsys: "mips", bits: 32},
	{ident: "MIPSN64", name: "mips_n64", xsys: "mips64", bits: 64},
	{ident: "PPC", name: "ppc", xsys: "ppc", bits: 32},
	{ident: "PPC64", name: "ppc64", xsys: "ppc64", bits: 64},
	{ident: "RISCV64", name: "riscv64", xsys: "riscv64", bits: 64},
	{ident: "S390X", name: "s390x", xsys: "s390x", bits: 64},
	{ident: "SPARC64", name: "sparc64", xsys: "sparc64", bits: 64},
	{ident: "LOONG64", name: "loong64", xsys: "loong64", bits: 64},
}

// xsys is what golang.org/x/sys/unix knows, by its names of CPUs.
type xsys struct {
	numbers map[string]map[uint64]string // system calls
	errnos  map[string]map[uint64]string
	signals map[string]map[uint64]string
	consts  map[string]map[string]uint64
	texts   map[string]string // of errors, by name
}

func readXSys(dir string) (*xsys, error) {
	x := &xsys{
		numbers: map[string]map[uint64]string{}, errnos: map[string]map[uint64]string{},
		signals: map[string]map[uint64]string{}, consts: map[string]map[string]uint64{},
		texts: map[string]string{},
	}
	common := map[string]uint64{}
	for _, f := range []string{"zerrors_linux.go", "ztypes_linux.go"} {
		if err := readConsts(filepath.Join(dir, f), common, nil, nil); err != nil {
			return nil, err
		}
	}
	for _, a := range abis {
		if x.numbers[a.xsys] != nil {
			continue
		}
		sys, own := map[string]uint64{}, map[string]uint64{}
		lists := map[string]map[uint64]string{"errorList": {}, "signalList": {}}
		if err := readConsts(filepath.Join(dir, "zsysnum_linux_"+a.xsys+".go"), sys, nil, nil); err != nil {
			return nil, err
		}
		for k, v := range common {
			own[k] = v
		}
		for _, f := range []string{"zerrors_linux_", "ztypes_linux_"} {
			if err := readConsts(filepath.Join(dir, f+a.xsys+".go"), own, lists, x.texts); err != nil {
				return nil, err
			}
		}
		names := map[uint64]string{}
		for k, v := range sys {
			name := strings.ToLower(strings.TrimPrefix(k, "SYS_"))
			if strings.HasPrefix(name, "unused") || strings.HasPrefix(name, "reserved") || name == "arch_specific_syscall" {
				continue
			}
			// Two names of one number: the shorter is the call's own.
			if old, ok := names[v]; !ok || len(name) < len(old) || len(name) == len(old) && name < old {
				names[v] = name
			}
		}
		if len(names) < 250 || len(lists["errorList"]) < 100 || len(lists["signalList"]) < 30 {
			return nil, fmt.Errorf("read x/sys: %s has %d calls, %d errors, %d signals", a.xsys, len(names), len(lists["errorList"]), len(lists["signalList"]))
		}
		x.numbers[a.xsys], x.errnos[a.xsys], x.signals[a.xsys], x.consts[a.xsys] = names, lists["errorList"], lists["signalList"], own
	}
	return x, nil
}

// readConsts adds a file's integer constants to consts, and the entries of
// its tables of numbers and names to lists, with their descriptions to texts.
func readConsts(path string, consts map[string]uint64, lists map[string]map[uint64]string, texts map[string]string) error {
	f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
	if err != nil {
		return fmt.Errorf("read x/sys: %w", err)
	}
	for _, d := range f.Decls {
		g, ok := d.(*ast.GenDecl)
		if !ok {
			continue
		}
		for _, s := range g.Specs {
			v, ok := s.(*ast.ValueSpec)
			if !ok || len(v.Names) != 1 || len(v.Values) != 1 {
				continue
			}
			if g.Tok == token.CONST {
				if n, ok := integer(v.Values[0]); ok {
					consts[v.Names[0].Name] = n
				}
			} else if list := lists[v.Names[0].Name]; list != nil {
				readList(v.Values[0], list, texts)
			}
		}
	}
	return nil
}

func readList(e ast.Expr, into map[uint64]string, texts map[string]string) {
	lit, ok := e.(*ast.CompositeLit)
	if !ok {
		return
	}
	for _, elt := range lit.Elts {
		row, ok := elt.(*ast.CompositeLit)
		if !ok || len(row.Elts) < 2 {
			continue
		}
		n, ok := integer(row.Elts[0])
		name, isLit := row.Elts[1].(*ast.BasicLit)
		if !ok || !isLit {
			continue
		}
		s, err := strconv.Unquote(name.Value)
		if err != nil {
			continue
		}
		into[n] = s
		if len(row.Elts) < 3 || texts[s] != "" {
			continue
		}
		if text, ok := row.Elts[2].(*ast.BasicLit); ok {
			texts[s], _ = strconv.Unquote(text.Value)
		}
	}
}

// integer evaluates a literal, also a negative or a converted one.
func integer(e ast.Expr) (uint64, bool) {
	switch e := e.(type) {
	case *ast.BasicLit:
		v := constant.MakeFromLiteral(e.Value, e.Kind, 0)
		return constant.Uint64Val(constant.ToInt(v))
	case *ast.UnaryExpr:
		n, ok := integer(e.X)
		return -n, ok && e.Op == token.SUB
	case *ast.CallExpr: // syscall.Errno(0x1)
		if len(e.Args) == 1 {
			return integer(e.Args[0])
		}
	}
	return 0, false
}
