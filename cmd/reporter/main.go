// SPDX-License-Identifier: Apache-2.0

// Command reporter writes the report of every analysis that ends on a NATS
// server.
package main

import (
	"os"

	"github.com/petri-sandbox/petri/cmd/internal/app"
)

func main() { os.Exit(app.Main("reporter", "writes the reports of ended analyses")) }
