// SPDX-License-Identifier: Apache-2.0

// Package all lists the analyzers that come with Petri. A program that runs
// them hands the list to both analyzers.Child and analyzers.Run.
package all

import (
	"github.com/petri-sandbox/petri/analyzers"
	"github.com/petri-sandbox/petri/analyzers/behavior"
	"github.com/petri-sandbox/petri/analyzers/static"
)

// List returns the analyzers, in the order of their names.
func List() []analyzers.Analyzer {
	return []analyzers.Analyzer{
		behavior.New(),
		static.New(),
	}
}
