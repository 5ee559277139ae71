// SPDX-License-Identifier: Apache-2.0

//go:build linux && (386 || arm || mipsle)

package tracer

import _ "embed"

//go:embed tracer_bpfel32.o
var tracerObject []byte

// flatObject is the same without functions, which the compilers of these kernels
// do not take.
//
//go:embed flat_bpfel32.o
var flatObject []byte

//go:embed calibrate_bpfel32.o
var calibrateObject []byte
