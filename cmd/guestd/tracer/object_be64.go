// SPDX-License-Identifier: Apache-2.0

//go:build linux && (mips64 || s390x)

package tracer

import _ "embed"

//go:embed tracer_bpfeb64.o
var tracerObject []byte

// flatObject is none: Debian's kernel of S/390 has no compiler of BPF programs, and
// mips64 has no guest.
var flatObject []byte

//go:embed calibrate_bpfeb64.o
var calibrateObject []byte
