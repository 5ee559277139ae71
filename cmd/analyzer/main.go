// SPDX-License-Identifier: Apache-2.0

// Command analyzer runs the analyzers that Petri brings against a NATS server:
// the daemon of a host that looks at what analyses left behind.
package main

import (
	"os"

	"github.com/petri-sandbox/petri/analyzers"
	"github.com/petri-sandbox/petri/analyzers/all"
	"github.com/petri-sandbox/petri/cmd/internal/app"
)

func main() {
	analyzers.Child(all.Children()) // does not return in a child
	os.Exit(app.Main("analyzer", "answers the analyses' tasks"))
}
