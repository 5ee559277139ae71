// SPDX-License-Identifier: Apache-2.0

//go:build linux && mips

package tracer

import _ "embed"

//go:embed tracer_bpfeb32.o
var tracerObject []byte

//go:embed calibrate_bpfeb32.o
var calibrateObject []byte
