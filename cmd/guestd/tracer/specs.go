// SPDX-License-Identifier: Apache-2.0

//go:build linux

package tracer

import "github.com/petri-sandbox/petri/schemas/sysno"

// maxSpecs is MAX_SPECS of bpf/tracer.bpf.c.
const maxSpecs = 2048

// callSpec is struct spec of bpf/record.h.
type callSpec struct {
	Flags   uint8
	Args    uint8
	In, Out uint8
	Kind    [6]uint8
	Param   [6]uint8
}

// Flags of a callSpec.
const (
	specEntry = 1 << iota
	specMux
	specExec
)

// callTable is struct table of bpf/record.h.
type callTable struct{ First, Count, Base uint32 }

type specTables struct {
	specs          []callSpec
	native, compat callTable
	muxBase        uint32 // entry of sub-call 0, which there is none of
}

// makeSpecs lays out what to capture of the calls of a kernel's two ABIs. Entry
// 0 is that of unknown calls: nothing.
func makeSpecs(native, compat sysno.ABI) specTables {
	t := specTables{specs: make([]callSpec, maxSpecs)}
	t.specs[0].Args = 6
	next := uint32(1)
	add := func(abi sysno.ABI, extra uint64) callTable {
		first, end := abi.Numbers()
		c := callTable{First: uint32(first), Count: uint32(end - first + extra), Base: next}
		for n := first; n < end; n++ {
			t.specs[next+uint32(n-first)] = specOf(abi, n, 0)
		}
		next += c.Count
		return c
	}
	if native == sysno.AMD64 {
		// x32 uses amd64's numbers and some of its own behind them.
		_, end := native.Numbers()
		_, x32 := sysno.X32.Numbers()
		t.native = add(native, x32-end)
		for n := end; n < x32; n++ {
			t.specs[t.native.Base+uint32(n)] = specOf(sysno.X32, n, 0)
		}
	} else {
		t.native = add(native, 0)
	}
	mux := native
	if compat.Valid() {
		t.compat = add(compat, 0)
		mux = compat
	}
	t.muxBase = next
	if n, ok := mux.Number("socketcall"); ok {
		for sub := uint8(1); sub <= sysno.Socketcalls; sub++ {
			t.specs[next+uint32(sub)] = specOf(mux, n, sub)
		}
	}
	return t
}

func specOf(abi sysno.ABI, number uint64, mux uint8) callSpec {
	c := sysno.CaptureOf(abi, number, mux)
	s := callSpec{Param: c.Param, Args: uint8(len(sysno.Lookup(abi, number, mux).Args))}
	for i, k := range c.Kind {
		s.Kind[i] = uint8(k)
		switch k {
		case sysno.CaptureNone:
		case sysno.CaptureOut, sysno.CaptureOutStruct, sysno.CaptureOutSockaddr, sysno.CaptureOutIov, sysno.CaptureOutMsg, sysno.CaptureOutMmsg:
			s.Out |= 1 << i
		default:
			s.In |= 1 << i
		}
	}
	if c.Entry {
		s.Flags |= specEntry
	}
	switch name, _ := abi.Name(number); name {
	case "socketcall":
		if mux == 0 {
			s.Flags |= specMux
		}
	case "execve", "execveat", "execv":
		s.Flags |= specExec
	}
	return s
}
