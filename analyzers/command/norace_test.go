// SPDX-License-Identifier: Apache-2.0

//go:build !race

package command_test

const race = false
