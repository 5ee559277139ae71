// SPDX-License-Identifier: Apache-2.0

//go:build linux && !mips && !mipsle && !mips64 && !mips64le

package main

// sigsetSize is how many bytes the kernel's signal mask has.
const sigsetSize = 8
