// SPDX-License-Identifier: Apache-2.0

package bus_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/petri-sandbox/petri/bus"
	"github.com/petri-sandbox/petri/bus/auth"
	"github.com/petri-sandbox/petri/schemas"
)

// TestFollowDefinitions has an analyzer removed and added again at once: who
// follows sees both, whether it may watch or has to look from time to time.
func TestFollowDefinitions(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	b, s := startAt(t, dir)
	for _, role := range []auth.Role{auth.Admin, auth.Analyzer} {
		t.Run(string(role), func(t *testing.T) {
			name := map[auth.Role]string{auth.Analyzer: "yara"}[role]
			a := s.Address()
			var err error
			if a.Creds, err = auth.Credentials(dir, role, name); err != nil {
				t.Fatal(err)
			}
			follower, err := bus.Connect(t.Context(), a, "test")
			if err != nil {
				t.Fatal(err)
			}
			defer follower.Close()
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
			defer cancel()
			begun, removed, n := make(chan struct{}), false, 0
			done := make(chan error, 1)
			go func() {
				done <- follower.FollowDefinitions(ctx, func(all map[string]schemas.Definition) {
					if n++; n == 1 {
						close(begun)
					}
					if all["static"].Removed {
						removed = true
					} else if removed {
						cancel()
					}
				})
			}()
			select {
			case <-begun:
			case err := <-done:
				t.Fatal(err)
			}
			if err := b.Define(t.Context(), schemas.Definition{Schema: "petri.definition.v1", Name: "static", Removed: true}); err != nil {
				t.Fatal(err)
			}
			if there, err := b.Undefine(t.Context(), "static"); err != nil || !there {
				t.Fatalf("forgotten: %v, %v", there, err)
			}
			if err := <-done; !errors.Is(err, context.Canceled) {
				t.Errorf("it ended with %v after %d looks; seen as removed: %v", err, n, removed)
			}
		})
	}
}
