// SPDX-License-Identifier: Apache-2.0

package archive

import (
	"encoding/json"
	"fmt"

	"github.com/petri-sandbox/petri/analyzers"
)

// An Unpacker is the analyzer for somebody who wants to run what is in an
// archive: it knows a password, and may be after one file. It takes part in no
// analysis.
type Unpacker struct {
	Analyzer
	config unpackConfig
}

type unpackConfig struct {
	Password string `json:"password,omitempty"`
	Member   string `json:"member,omitempty"`
}

var (
	_ analyzers.Configured = Unpacker{}
	_ analyzers.Maker      = Unpacker{}
)

// NewUnpacker returns one that tries password before the common ones, and takes
// out only the file called member, if that is not empty.
func NewUnpacker(password, member string) Unpacker {
	u := Unpacker{Analyzer: New(), config: unpackConfig{password, member}}
	if password != "" {
		u.Analyzer = New(password)
	}
	u.only = member
	return u
}

// Info implements [analyzers.Analyzer].
func (u Unpacker) Info() analyzers.Info {
	i := u.Analyzer.Info()
	i.Name = "unpack"
	return i
}

// Configuration implements [analyzers.Configured].
func (u Unpacker) Configuration() ([]byte, error) { return json.Marshal(u.config) }

// Make implements [analyzers.Maker].
func (Unpacker) Make(configuration []byte) (analyzers.Analyzer, error) {
	var c unpackConfig
	if err := json.Unmarshal(configuration, &c); err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	return NewUnpacker(c.Password, c.Member), nil
}
