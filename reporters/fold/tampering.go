// SPDX-License-Identifier: Apache-2.0

package fold

import (
	"fmt"
	"maps"
	"time"

	"github.com/petri-sandbox/petri/schemas"
)

// maxTamperCalls is how many kinds of calls the report counts apart: more than
// there are, unless the guest makes some up.
const maxTamperCalls = 32

// possibleTampering notes that the guest may be the sample's from now on.
func (f *Fold) possibleTampering(at time.Time, d schemas.PossibleTampering) string {
	if f.tampering == nil {
		f.tampering = &schemas.Tampering{Since: at, First: d, Calls: map[string]int{}}
	}
	call := d.Call
	if _, ok := f.tampering.Calls[call]; !ok && len(f.tampering.Calls) >= maxTamperCalls {
		call = "others"
	}
	f.tampering.Calls[call]++
	if d.Behind != "" {
		f.behind++
		f.whyBehind = d.Behind
	}
	return d.String()
}

// after says what of the report comes from a guest that the sample may have
// changed. The report's copy is its own: the fold may go on.
func (f *Fold) after(r *schemas.Report) []string {
	if f.tampering == nil {
		return nil
	}
	t := *f.tampering
	t.Calls = maps.Clone(t.Calls)
	all := t.First.Records
	for _, s := range r.Coverage.Sources {
		if s.Source == schemas.SourceTrace {
			all = s.Produced
		}
	}
	t.Records = max(all, t.First.Records) - t.First.Records
	r.Coverage.Tampering = &t
	gaps := []string{fmt.Sprintf("what the guest says from record %d of its trace on comes after possible tampering: %s", t.First.Records, t.First)}
	if f.behind > 0 {
		gaps = append(gaps, fmt.Sprintf("at %d calls of possible tampering not all had left the guest that was recorded before: %s", f.behind, f.whyBehind))
	}
	return gaps
}
