// SPDX-License-Identifier: Apache-2.0

//go:build race

package command_test

// race says that the race detector's memory leaves no room for a limit.
const race = true
