// SPDX-License-Identifier: Apache-2.0

package schemas

import (
	"fmt"
	"time"
)

// A Duration is a [time.Duration] that is written as its text, 1m30s.
type Duration time.Duration

// D is the value as a [time.Duration].
func (d Duration) D() time.Duration { return time.Duration(d) }

func (d Duration) String() string { return time.Duration(d).String() }

// MarshalText gives the text.
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText reads the text.
func (d *Duration) UnmarshalText(b []byte) error {
	v, err := time.ParseDuration(string(b))
	if err != nil {
		return fmt.Errorf("%.40q is not a duration (write 500ms, 20s or 1m30s)", b)
	}
	*d = Duration(v)
	return nil
}
