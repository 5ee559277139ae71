// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/petri-sandbox/petri/schemas"
)

// SetProfile stores what the operator wants of a profile's analyses. Jobs that a
// sandbox takes from now on follow it.
func (b *Bus) SetProfile(ctx context.Context, p schemas.Profile) error {
	if err := p.Check(); err != nil {
		return fmt.Errorf("set profile %.40q: %w", p.Name, err)
	}
	body, err := json.Marshal(p)
	if err != nil {
		return fmt.Errorf("encode profile: %w", err)
	}
	kv, err := b.js.KeyValue(ctx, kvProfiles)
	if err == nil {
		_, err = kv.Put(ctx, p.Name, body)
	}
	if err != nil {
		return fmt.Errorf("set profile %s: %w", p.Name, err)
	}
	return nil
}

// ForgetProfile removes what the operator wants of a profile's analyses, and
// reports whether there was anything.
func (b *Bus) ForgetProfile(ctx context.Context, name string) (bool, error) {
	if err := schemas.CheckProfile(name); err != nil {
		return false, err
	}
	there, err := b.deleteKey(ctx, kvProfiles, name)
	if err != nil {
		return false, fmt.Errorf("forget profile %s: %w", name, err)
	}
	return there, nil
}

// Profile returns what the operator wants of a profile's analyses. Only if
// nobody has said it, the error wraps [ErrNotFound].
func (b *Bus) Profile(ctx context.Context, name string) (schemas.Profile, error) {
	if err := schemas.CheckProfile(name); err != nil {
		return schemas.Profile{}, err
	}
	p, err := value[schemas.Profile](ctx, b, kvProfiles, name)
	if err == nil {
		err = p.Check()
	}
	if err != nil {
		return schemas.Profile{}, fmt.Errorf("read profile %s: %w", name, err)
	}
	return p, nil
}

// Profiles returns, by its name, every profile of which the operator wants
// something.
func (b *Bus) Profiles(ctx context.Context) (map[string]schemas.Profile, error) {
	return values[schemas.Profile](ctx, b, kvProfiles)
}
