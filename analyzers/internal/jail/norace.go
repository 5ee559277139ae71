// SPDX-License-Identifier: Apache-2.0

//go:build !race

package jail

const raceEnabled = false

// Env is the environment of a child: none.
func Env() []string { return []string{} }
