// SPDX-License-Identifier: Apache-2.0

// Command sandboxd takes submissions from a NATS server and runs an analysis
// for each: the daemon of a host that has the virtual machines.
package main

import (
	"fmt"
	"os"

	"github.com/petri-sandbox/petri/cmd/internal/app"
	"github.com/petri-sandbox/petri/sandboxd/machine/supervisor"
)

func main() {
	if len(os.Args) > 1 && os.Args[1] == app.SupervisorCommand {
		if err := supervisor.Main(); err != nil {
			fmt.Fprintln(os.Stderr, "sandboxd:", err)
			os.Exit(1)
		}
		return
	}
	os.Exit(app.Main("sandboxd", "takes submissions and runs them in virtual machines"))
}
