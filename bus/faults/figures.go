// SPDX-License-Identifier: Apache-2.0

package faults

import (
	"fmt"
	"strings"
)

// Figures are what a fault has cost.
type Figures struct {
	Acked   int    // what the bus has acknowledged
	Lost    int    // of that, what it has no longer
	Doubled int    // events, receipts and findings that it has more often than once
	Wrong   int    // analyses that were called complete and were not
	Note    string // what else is worth knowing
}

// marker begins the line that [Figures.Report] writes, for [ParseFigures].
const marker = "figures of the fault: "

const format = marker + "acked %d lost %d doubled %d wrong %d"

// String is the line that make faults reads.
func (f Figures) String() string {
	s := fmt.Sprintf(format, f.Acked, f.Lost, f.Doubled, f.Wrong)
	if f.Note != "" {
		s += " (" + f.Note + ")"
	}
	return s
}

// ParseFigures finds figures in a line of a test's output.
func ParseFigures(line string) (f Figures, ok bool) {
	i := strings.Index(line, marker)
	if i < 0 {
		return f, false
	}
	line = strings.TrimSpace(line[i:])
	if _, err := fmt.Sscanf(line, format, &f.Acked, &f.Lost, &f.Doubled, &f.Wrong); err != nil {
		return f, false
	}
	if _, note, ok := strings.Cut(line, " ("); ok {
		f.Note = strings.TrimSuffix(note, ")")
	}
	return f, true
}

// Add are the figures of two faults together.
func (f Figures) Add(g Figures) Figures {
	sum := Figures{Acked: f.Acked + g.Acked, Lost: f.Lost + g.Lost, Doubled: f.Doubled + g.Doubled, Wrong: f.Wrong + g.Wrong, Note: f.Note}
	switch {
	case sum.Note == "":
		sum.Note = g.Note
	case g.Note != "":
		sum.Note += "; " + g.Note
	}
	return sum
}

// A Test is what [Figures.Report] needs of a test.
type Test interface {
	Helper()
	Logf(format string, args ...any)
	Errorf(format string, args ...any)
}

// Report writes the figures into a test's output, and fails it if anything was
// lost, doubled or wrong, or if nothing was acknowledged: then nothing was at
// stake.
func (f Figures) Report(t Test) {
	t.Helper()
	t.Logf("%s", f)
	if f.Lost+f.Doubled+f.Wrong > 0 {
		t.Errorf("of %d acknowledged %d are lost, %d doubled; %d analyses were called complete and were not", f.Acked, f.Lost, f.Doubled, f.Wrong)
	}
	if f.Acked == 0 {
		t.Errorf("nothing was acknowledged")
	}
}
