// SPDX-License-Identifier: Apache-2.0

package app

import (
	"context"
	"errors"

	"github.com/petri-sandbox/petri/analyzers/all"
	"github.com/petri-sandbox/petri/bus"
)

// Expected returns who must answer for the analyses of a profile: the operator's
// list, or, if there is none, the analyzers that Petri brings but for those that
// the operator has removed. The list is never nil; listed is whether it is the
// operator's.
func Expected(ctx context.Context, b *bus.Bus, profile string) (names []string, listed bool, err error) {
	p, err := b.Profile(ctx, profile)
	if err == nil {
		return p.Expected, true, nil
	}
	if !errors.Is(err, bus.ErrNotFound) {
		return nil, false, err
	}
	names = []string{}
	for _, a := range all.List() {
		name := a.Info().Name
		d, err := b.Definition(ctx, name)
		if err != nil && !errors.Is(err, bus.ErrNotFound) {
			return nil, false, err
		}
		if !d.Removed {
			names = append(names, name)
		}
	}
	return names, false, nil
}
