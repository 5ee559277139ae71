// SPDX-License-Identifier: Apache-2.0

package main

import (
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/petri-sandbox/petri/bus"
	"github.com/petri-sandbox/petri/bus/auth"
	"github.com/petri-sandbox/petri/cmd/internal/app"
)

// asksDesk are the commands of which the desk answers a tenant's user everything.
var asksDesk = []string{"submit", "cancel", "list", "watch", "report", "events", "artifacts", "get", "trace", "verify", "diff", "export"}

// needNoBus are those that look at nobody's analyses.
var needNoBus = []string{"help", "completion", "__complete", "bus", "guest", "doctor", app.SupervisorCommand}

// mayRun refuses a tenant's user what only who administers Petri may do. The
// servers would refuse it too, here and there in the middle.
func (g *global) mayRun(c *cobra.Command) error {
	for c.HasParent() && c.Parent().HasParent() {
		c = c.Parent()
	}
	if g.cfg.Creds == "" || slices.Contains(needNoBus, c.Name()) || slices.Contains(asksDesk, c.Name()) {
		return nil
	}
	user, err := bus.Address{Creds: g.cfg.Creds}.User()
	if err != nil {
		return err
	}
	if tenant, is := strings.CutPrefix(user, string(auth.User)+"-"); is {
		return usagef("petri %s is nothing for a user of tenant %s, whose credentials these are (%s): ask who administers Petri, or use that one's credentials (--creds admin.creds). A tenant's user may: %s",
			c.Name(), tenant, g.cfg.Creds, strings.Join(asksDesk, ", "))
	}
	return nil
}
