// SPDX-License-Identifier: Apache-2.0

//go:build race

package jail

// raceEnabled says that the race detector's shadow memory is mapped: any limit
// of memory would be exceeded before the program began.
const raceEnabled = true

// Env is the environment of a child: none. The race detector would sleep for
// a second at every exit.
func Env() []string { return []string{"GORACE=atexit_sleep_ms=0"} }
