// SPDX-License-Identifier: Apache-2.0

package schemas

import (
	"errors"
	"fmt"
	"slices"
)

// ProfileSchema is the schema field of a [Profile].
const ProfileSchema = "petri.profile.v1"

// Profile is what the operator wants of a profile's analyses. It is kept beside
// the log, and a sandbox reads it when it takes a job.
type Profile struct {
	Schema   string   `json:"schema"`             // petri.profile.v1
	Name     string   `json:"name"`               // as submissions name it
	Expected []string `json:"expected_analyzers"` // who must answer for the coverage to be whole; an empty list: nobody
}

// MaxExpected is how many analyzers a profile may expect.
const MaxExpected = 256

// Check reports what is wrong with a profile.
func (p *Profile) Check() error {
	if err := CheckProfile(p.Name); err != nil {
		return err
	}
	switch {
	case p.Schema != ProfileSchema:
		return fmt.Errorf("schema %.80q is not %s", p.Schema, ProfileSchema)
	case p.Expected == nil:
		return errors.New("expected_analyzers: there is no list")
	case len(p.Expected) > MaxExpected:
		return fmt.Errorf("expected_analyzers: %d are named; %d are allowed", len(p.Expected), MaxExpected)
	}
	for i, name := range p.Expected {
		if err := CheckAnalyzer(name); err != nil {
			return err
		}
		if slices.Contains(p.Expected[:i], name) {
			return fmt.Errorf("analyzer %s is named twice", name)
		}
	}
	return nil
}
