// SPDX-License-Identifier: Apache-2.0

package sandboxd_test

import (
	"strings"
	"testing"
	"testing/synctest"

	"github.com/petri-sandbox/petri/sandboxd/machine"
	"github.com/petri-sandbox/petri/schemas"
)

// TestExtra gives each sample the guest that has what it asks for, and where there
// is none says how to have one.
func TestExtra(t *testing.T) {
	const own = "amd64+python3"
	for _, c := range []struct {
		name, interpreter string
		command           []string
		built             bool
		guest, advice     string
	}{
		{"python3", "/usr/bin/python3 -u", nil, true, own, ""},
		{"by env", "/usr/bin/env python3", nil, true, own, ""},
		{"by a command", "/bin/sh", []string{"python3", "{sample}"}, true, own, ""},
		{"not built", "/usr/bin/env python3", nil, false, "amd64", "petri guest build " + own},
		{"sh", "/bin/sh", nil, true, "amd64", ""},
		{"elsewhere", "/opt/bin/python3", nil, false, "amd64", ""},
		{"a command that is none", "/usr/bin/python3", []string{"cat", "{sample}"}, true, "amd64", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBench(t)
				b.has = func(guest string) bool { return c.built && guest == own }
				b.machine = func(m *fakeMachine) {
					m.onRun = func(*fakeMachine) (machine.Started, error) {
						return machine.Started{}, &machine.NotExecuted{Reason: "it is not there"}
					}
				}
				sub := b.submission(t)
				sub.Sample.Type.Interpreter, sub.Options.Command = c.interpreter, c.command
				b.analyse(t, sub)
				var pre schemas.PrePoweron
				b.find(t, sub.ID, "pre_poweron", &pre)
				var run schemas.RunSample
				b.find(t, sub.ID, "run_sample", &run)
				var exited schemas.SampleExited
				b.find(t, sub.ID, "sample_exited", &exited)
				if pre.Machine.Arch != c.guest {
					t.Errorf("its guest is %s, not %s", pre.Machine.Arch, c.guest)
				}
				if _, quiet := run.Env["PYTHONDONTWRITEBYTECODE"]; quiet != (c.guest == own) {
					t.Errorf("its environment: %v", run.Env)
				}
				if !strings.HasPrefix(exited.Error, "it is not there") || strings.Contains(exited.Error, "petri guest build") != (c.advice != "") || !strings.Contains(exited.Error, c.advice) {
					t.Errorf("why it was not executed: %q, without %q", exited.Error, c.advice)
				}
			})
		})
	}
}
