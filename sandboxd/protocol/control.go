// SPDX-License-Identifier: Apache-2.0

package protocol

import (
	"strconv"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/petri-sandbox/petri/sandboxd/internal/yamlfile"
	"github.com/petri-sandbox/petri/schemas"
)

// Control is what analyzers may ask of the sandbox while the sample runs, in
// all. The zero value allows nothing.
type Control struct {
	Extend     time.Duration // by how much waits may become longer
	Stop       bool          // waits may be ended
	DumpMemory int           // memory images
	Screenshot int           // pictures of the display
}

// maxTaken bounds the memory images, and the pictures, of one analysis.
const maxTaken = 100

func (p *Protocol) readControl(n *yaml.Node) []error {
	if n.Tag == "!!null" {
		return nil
	}
	if n.Kind != yaml.MappingNode {
		return []error{at(n, "control is a mapping (control: {extend: 60s, stop: true, dump_memory: 2})")}
	}
	var errs []error
	for key, value := range yamlfile.Pairs(n) {
		var err error
		switch key.Value {
		case schemas.ControlExtend:
			err = readDuration(value, &p.Control.Extend)
			if err == nil && p.Control.Extend > maxTime {
				err = at(value, "extend is between 1ms and %s", maxTime)
			}
		case schemas.ControlStop:
			if value.Decode(&p.Control.Stop) != nil {
				err = at(value, "stop is true or false")
			}
		case schemas.ControlDumpMemory:
			err = readCount(value, key.Value, &p.Control.DumpMemory)
		case schemas.ControlScreenshot:
			err = readCount(value, key.Value, &p.Control.Screenshot)
		default:
			err = at(key, "control has no option %q (%s)", key.Value, yamlfile.Nearest(key.Value, schemas.ControlActions))
		}
		if err != nil {
			errs = append(errs, err)
		}
	}
	return errs
}

func readCount(n *yaml.Node, key string, into *int) error {
	v, err := strconv.Atoi(n.Value)
	if err != nil || v < 0 || v > maxTaken {
		return at(n, "%s is a number from 0 to %d", key, maxTaken)
	}
	*into = v
	return nil
}
