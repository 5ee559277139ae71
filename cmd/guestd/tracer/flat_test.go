// SPDX-License-Identifier: Apache-2.0

//go:build linux

package tracer

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
)

// TestFlat looks for what the compilers of some kernels do not take, so that the
// kernel would interpret a program, or refuse it.
func TestFlat(t *testing.T) {
	for _, kind := range []string{"el32", "eb32", "el64", "eb64"} {
		flat, err := ebpf.LoadCollectionSpec("flat_bpf" + kind + ".o")
		if err != nil {
			t.Fatal(err)
		}
		usual, err := ebpf.LoadCollectionSpec("tracer_bpf" + kind + ".o")
		if err != nil {
			t.Fatal(err)
		}
		for name, p := range flat.Programs {
			for _, ins := range p.Instructions {
				if refused(ins) {
					t.Errorf("%s of flat_bpf%s.o: %v", name, kind, ins)
				}
			}
		}
		for name, p := range usual.Programs {
			if flat.Programs[name] == nil {
				t.Errorf("flat_bpf%s.o has no %s", kind, name)
			}
			if (name == "sys_enter" || name == "process_fork") && !slices.ContainsFunc(p.Instructions, refused) {
				t.Errorf("%s of tracer_bpf%s.o has nothing that is refused", name, kind)
			}
		}
	}
}

func refused(ins asm.Instruction) bool {
	op := ins.OpCode
	switch {
	case ins.IsFunctionCall(), op.Class() == asm.StXClass && op.Mode() == asm.AtomicMode:
		return true
	case op.Class() == asm.ALU64Class:
		return op.ALUOp() == asm.Div || op.ALUOp() == asm.Mod
	}
	return false
}

// TestCompiling: the switch is on only while programs are loaded, whatever comes of
// that.
func TestCompiling(t *testing.T) {
	file := filepath.Join(t.TempDir(), "bpf_jit_enable")
	refused := errors.New("refused")
	for _, is := range []error{nil, refused} {
		if err := os.WriteFile(file, []byte("0\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		during := ""
		err := compiling(file, func() error {
			b, err := os.ReadFile(file)
			during = string(b)
			return errors.Join(is, err)
		})
		after, _ := os.ReadFile(file)
		if !errors.Is(err, is) || during != "1" || string(after) != "0\n" {
			t.Errorf("%v: it was %q and is %q", err, during, after)
		}
	}
	called := false
	if err := compiling(file+".none", func() error { called = true; return nil }); err != nil || !called {
		t.Errorf("without a switch: %v, called %v", err, called)
	}
}
