// SPDX-License-Identifier: Apache-2.0

// Package all lists the analyzers that come with Petri. A program that runs
// them hands Children to analyzers.Child and List to analyzers.Run.
package all

import (
	"github.com/petri-sandbox/petri/analyzers"
	"github.com/petri-sandbox/petri/analyzers/archive"
	"github.com/petri-sandbox/petri/analyzers/behavior"
	"github.com/petri-sandbox/petri/analyzers/command"
	"github.com/petri-sandbox/petri/analyzers/static"
)

// List returns the analyzers, in the order of their names.
func List() []analyzers.Analyzer {
	return []analyzers.Analyzer{
		archive.New(),
		behavior.New(),
		static.New(),
	}
}

// Children returns what a child process needs to know: the list, what makes the
// analyzers that are commands, and what unpacks archives for a submitter.
func Children() []analyzers.Analyzer { return append(List(), archive.Unpacker{}, command.Analyzer{}) }
