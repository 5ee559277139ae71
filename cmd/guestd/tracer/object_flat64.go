// SPDX-License-Identifier: Apache-2.0

//go:build linux && (mips64le || ppc64le || riscv64)

package tracer

import _ "embed"

//go:embed tracer_bpfel64.o
var tracerObject []byte

// flatObject is the same without functions, which the compiler of MIPS does not
// take. All three kernels have theirs off.
//
//go:embed flat_bpfel64.o
var flatObject []byte

//go:embed calibrate_bpfel64.o
var calibrateObject []byte
