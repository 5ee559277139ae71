// SPDX-License-Identifier: Apache-2.0

//go:build linux && (mips64 || ppc64 || s390x)

package tracer

import _ "embed"

//go:embed tracer_bpfeb64.o
var tracerObject []byte

// flatObject is none: the compilers of these kernels take functions.
var flatObject []byte

//go:embed calibrate_bpfeb64.o
var calibrateObject []byte
