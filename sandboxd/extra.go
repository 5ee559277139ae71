// SPDX-License-Identifier: Apache-2.0

package sandboxd

import (
	"cmp"
	"maps"

	"github.com/petri-sandbox/petri/sandboxd/catalogue"
	"github.com/petri-sandbox/petri/schemas/elfid"
)

// extra names what the command, or the sample as a script, asks of its guest that
// the usual one does not have; empty: nothing.
func (a *analysis) extra() string {
	if c := a.sub.Options.Command; len(c) > 0 {
		return catalogue.ExtraFor(c[0])
	}
	if t := a.sub.Sample.Type; t.Format == elfid.FormatScript {
		path, program := elfid.Interpreter(t.Interpreter)
		return catalogue.ExtraFor(cmp.Or(program, path))
	}
	return ""
}

// chooseGuest returns the guest that has what the sample asks for, if this sandbox
// has it; else the usual one, which will say what it lacks, and how to have it.
func (a *analysis) chooseGuest() (guest, advice string) {
	with := catalogue.With(a.sub.Profile, a.extra())
	if with == a.sub.Profile || a.w.opts.Has == nil {
		return a.sub.Profile, ""
	}
	if a.w.opts.Has(with) {
		return with, ""
	}
	if _, err := catalogue.Lookup(with); err != nil {
		return a.sub.Profile, ""
	}
	return a.sub.Profile, "build one that has it: petri guest build " + with
}

// environment is the sample's: what was asked for, and what its guest has besides.
func (a *analysis) environment() map[string]string {
	asked := a.sub.Options.Env
	c, err := catalogue.Lookup(a.guest)
	if err != nil || len(c.With.Env) == 0 {
		return asked
	}
	env := maps.Clone(c.With.Env)
	maps.Copy(env, asked)
	return env
}
