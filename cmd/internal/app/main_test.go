// SPDX-License-Identifier: Apache-2.0

package app_test

import (
	"os"
	"testing"

	"github.com/petri-sandbox/petri/analyzers"
	"github.com/petri-sandbox/petri/analyzers/all"
	"github.com/petri-sandbox/petri/cmd/internal/app"
)

// cleanUp ends what tests have made for each other.
var cleanUp = func() {}

func TestMain(m *testing.M) {
	analyzers.Child(all.Children())
	if role := os.Getenv(app.RoleVariable); role != "" {
		os.Exit(app.Main(role, "of a test"))
	}
	code := m.Run()
	cleanUp()
	os.Exit(code)
}
