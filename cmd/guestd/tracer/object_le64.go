// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64 || loong64)

package tracer

import _ "embed"

//go:embed tracer_bpfel64.o
var tracerObject []byte

// flatObject is none: the compilers of these kernels take functions, and are on.
var flatObject []byte

//go:embed calibrate_bpfel64.o
var calibrateObject []byte
