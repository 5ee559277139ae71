// SPDX-License-Identifier: Apache-2.0

package main

import (
	"github.com/spf13/cobra"

	"github.com/petri-sandbox/petri/cmd/internal/app"
	"github.com/petri-sandbox/petri/sandboxd/machine/supervisor"
)

// supervisorCommand runs one machine; sandboxd starts it. Its argument is the
// mark by which a later start finds it.
func supervisorCommand() *cobra.Command {
	return &cobra.Command{
		Use: app.SupervisorCommand + " MARK", Hidden: true, Args: args(cobra.ExactArgs(1)),
		RunE: func(*cobra.Command, []string) error { return supervisor.Main() },
	}
}
