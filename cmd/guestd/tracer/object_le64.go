// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64 || loong64 || mips64le || ppc64le || riscv64)

package tracer

import _ "embed"

//go:embed tracer_bpfel64.o
var tracerObject []byte

//go:embed calibrate_bpfel64.o
var calibrateObject []byte
