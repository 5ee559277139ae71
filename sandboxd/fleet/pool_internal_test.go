// SPDX-License-Identifier: Apache-2.0

package fleet

import (
	"testing"

	"github.com/petri-sandbox/petri/sandboxd/machine"
	"github.com/petri-sandbox/petri/schemas"
)

// asking is an observer that needs the fleet before it takes anything, as one does
// that waits for the log while other machines end.
type asking struct {
	machine.Observer
	f    *Fleet
	text string
}

func (a *asking) Data(_ schemas.Source, p []byte) {
	a.f.Waiting("amd64")
	a.text += string(p)
}

// TestClaim: a machine is handed over with what it has said, and who takes that
// may wait without the fleet.
func TestClaim(t *testing.T) {
	f := New(Options{})
	ready := func(key, said string) *waiting {
		out := &handover{spoilt: f.note}
		out.Data(schemas.SourceSerial, []byte(said))
		return &waiting{owned: &owned{}, key: key, out: out}
	}
	other, mine := ready("other", "no"), ready("mine", "hello")
	f.pool["amd64"] = []*waiting{other, mine}
	o := &asking{f: f}
	if got := f.claim("amd64", "mine", o); got != mine.owned || o.text != "hello" {
		t.Errorf("claimed %p with %q, want %p", got, o.text, mine.owned)
	}
	if got := f.claim("amd64", "mine", o); got != nil || f.Waiting("amd64") != 1 {
		t.Errorf("claimed %p, %d are left", got, f.Waiting("amd64"))
	}
	other.out.End(schemas.SourceSerial, schemas.SourceCoverage{})
	if got := f.claim("amd64", "other", o); got != nil {
		t.Error("claimed one that has ended")
	}
}
