// SPDX-License-Identifier: Apache-2.0

//go:build !race

package analyzers_test

const raceEnabled = false
