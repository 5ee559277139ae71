// SPDX-License-Identifier: Apache-2.0

//go:build linux && ppc64

package tracer

import _ "embed"

//go:embed tracer_bpfeb64.o
var tracerObject []byte

// flatObject is the same without functions. The kernel's compiler takes both, and is
// off.
//
//go:embed flat_bpfeb64.o
var flatObject []byte

//go:embed calibrate_bpfeb64.o
var calibrateObject []byte
