// SPDX-License-Identifier: Apache-2.0

package sandboxd_test

import (
	"errors"
	"testing"

	"github.com/petri-sandbox/petri/sandboxd"
)

// TestTransitions is the whole state machine, every state with every verb.
func TestTransitions(t *testing.T) {
	const no = sandboxd.State("")
	verbs := []sandboxd.Verb{sandboxd.VerbPoweron, sandboxd.VerbPause, sandboxd.VerbResume, sandboxd.VerbShutdown, sandboxd.VerbPoweroff, sandboxd.VerbRestart}
	want := map[sandboxd.State][]sandboxd.State{
		sandboxd.Defined:  {sandboxd.Running, no, no, no, no, no},
		sandboxd.Running:  {no, sandboxd.Paused, no, sandboxd.Shutdown, sandboxd.Off, sandboxd.Running},
		sandboxd.Paused:   {no, no, sandboxd.Running, no, sandboxd.Off, no},
		sandboxd.Shutdown: {sandboxd.Running, no, no, no, no, no},
		sandboxd.Off:      {sandboxd.Running, no, no, no, no, no},
		sandboxd.Crashed:  {sandboxd.Running, no, no, no, no, no},
	}
	for from, row := range want {
		for i, v := range verbs {
			got, err := sandboxd.Next(from, v)
			if got != row[i] {
				t.Errorf("%s of a machine that is %s gives %q, want %q", v, from, got, row[i])
			}
			if (row[i] == no) != errors.Is(err, sandboxd.ErrIllegal) {
				t.Errorf("%s of a machine that is %s: %v", v, from, err)
			}
		}
	}
	if _, err := sandboxd.Next(sandboxd.Running, "explode"); !errors.Is(err, sandboxd.ErrIllegal) {
		t.Errorf("an unknown verb: %v", err)
	}
}
