// SPDX-License-Identifier: Apache-2.0

// Package term renders a report for a person at a terminal. It decides nothing:
// all that it shows is in the report. Text that a sample chose reaches the
// terminal without its control characters.
package term

import (
	"bufio"
	"cmp"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/petri-sandbox/petri/schemas"
)

// Options of [Write]. The zero value is plain text of 100 columns.
type Options struct {
	Color bool // use ANSI colors
	Width int  // columns
	Full  bool // do not shorten lists
}

// How much of a list a person wants to see at first.
const (
	shortList    = 20
	shortConsole = 30 // lines
)

// Write renders r to w.
func Write(w io.Writer, r *schemas.Report, o Options) error {
	if o.Width <= 0 {
		o.Width = 100
	}
	p := &printer{w: bufio.NewWriter(w), o: o}
	p.head(r)
	p.console(r)
	p.findings(r)
	p.processes(r)
	p.files(r)
	p.network(r)
	p.artifacts(r)
	p.coverage(r)
	p.foot(r)
	return p.w.Flush()
}

type printer struct {
	w *bufio.Writer
	o Options
}

// Styles of text, as SGR parameters.
const (
	bold   = "1"
	dim    = "2"
	red    = "31"
	green  = "32"
	yellow = "33"
	cyan   = "36"
)

func (p *printer) style(s, code string) string {
	if !p.o.Color || s == "" {
		return s
	}
	return "\x1b[" + code + "m" + s + "\x1b[0m"
}

func (p *printer) printf(format string, args ...any) { fmt.Fprintf(p.w, format, args...) }

// line prints one line, cut to the width.
func (p *printer) line(indent int, s string) {
	p.printf("%s%s\n", strings.Repeat(" ", indent), Clip(s, p.o.Width-indent))
}

func (p *printer) title(s, note string) {
	p.printf("\n%s", p.style(s, bold))
	if note != "" {
		p.printf("  %s", p.style(note, dim))
	}
	p.printf("\n")
}

// Clean replaces what a terminal would obey, or what is no text.
func Clean(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\t':
			return ' '
		case r < ' ', r >= 0x7f && r < 0xa0, r >= 0x200b && r <= 0x200f, r >= 0x2028 && r <= 0x202e, r >= 0x2060 && r <= 0x206f, r == 0xfeff:
			return '\ufffd'
		}
		return r
	}, s)
}

// Clip cuts a string that is wider than width columns, and says so by an
// ellipsis. It is for text without styles.
func Clip(s string, width int) string {
	s = Clean(s)
	runes := []rune(s)
	if len(runes) <= width || width < 2 {
		return s
	}
	return string(runes[:width-1]) + "…"
}

func (p *printer) outcomeStyle(o schemas.Outcome) string {
	switch o {
	case schemas.OutcomeCompleted:
		return green
	case schemas.OutcomeFailed, schemas.OutcomeUnsupported, schemas.OutcomeNotExecuted:
		return red
	}
	return yellow
}

func (p *printer) verdictStyle(v schemas.Verdict) string {
	switch v {
	case schemas.VerdictMalicious:
		return red
	case schemas.VerdictSuspicious:
		return yellow
	case schemas.VerdictNoFindings:
		return green
	}
	return cyan
}

func (p *printer) head(r *schemas.Report) {
	p.printf("%s\n", p.style(Clip(r.Sample.Name, p.o.Width), bold))
	p.line(0, fmt.Sprintf("%s, %s", Size(r.Sample.Size), r.Sample.Type.Description))
	p.printf("sha256 %s\n\n", r.Sample.SHA256)
	p.field("outcome", p.style(string(r.Outcome.Value), bold+";"+p.outcomeStyle(r.Outcome.Value)))
	for i, reason := range r.Outcome.Reasons {
		if i == 5 && !p.o.Full {
			p.line(10, fmt.Sprintf("and %d more, see coverage below", len(r.Outcome.Reasons)-i))
			break
		}
		p.line(10, reason)
	}
	p.field("verdict", p.style(string(r.Verdict.Value), bold+";"+p.verdictStyle(r.Verdict.Value))+p.style("  "+strings.Join(r.Verdict.Reasons, "; "), dim))
	if m := r.Machine; m.Spec != nil {
		text := fmt.Sprintf("%s, %s start, %s, %s", m.Spec.Arch, m.Spec.Start, m.Spec.Accel, Size(m.Spec.Memory))
		if m.Kernel != "" {
			text += ", Linux " + m.Kernel
		}
		if m.Tracer != nil {
			text += ", traced by " + m.Tracer.Backend
		}
		p.field("machine", Clip(text, p.o.Width-10))
		if m.Fallback != "" {
			p.line(10, "booted: "+m.Fallback)
		}
	}
	if a := r.Analysis; a.Ended != nil {
		p.field("took", fmt.Sprintf("%s, from %s", a.Ended.Sub(a.Submitted).Round(10*time.Millisecond), a.Submitted.Format("2006-01-02 15:04:05 UTC")))
	}
}

func (p *printer) field(name, value string) { p.printf("%-9s %s\n", name, value) }

func (p *printer) console(r *schemas.Report) {
	c := r.Console
	note := ""
	switch {
	case c.Signal != "":
		note = c.Reason + " by " + c.Signal
	case c.ExitCode != nil:
		note = "exit code " + strconv.Itoa(*c.ExitCode)
	case c.Reason != "":
		note = c.Reason
	default:
		return
	}
	p.title("console", note)
	p.output("", c.Stdout)
	p.output("stderr ", c.Stderr)
	if c.Truncated {
		p.line(2, "(shortened: the console artifacts hold more)")
	}
}

func (p *printer) output(prefix, s string) {
	if s == "" {
		return
	}
	lines := strings.Split(strings.TrimRight(s, "\n"), "\n")
	for i, l := range lines {
		if i == shortConsole && !p.o.Full {
			p.printf("  %s\n", p.style(fmt.Sprintf("… %d more lines", len(lines)-i), dim))
			return
		}
		p.printf("  %s%s\n", p.style(prefix+"│ ", dim), Clip(l, p.o.Width-4-len(prefix)))
	}
}

func (p *printer) findings(r *schemas.Report) {
	if len(r.Findings) == 0 {
		return
	}
	p.title("findings", "")
	for i, f := range r.Findings {
		if p.more(i, len(r.Findings)) {
			return
		}
		sev := cmp.Or(f.Severity, schemas.SeverityInfo)
		code := dim
		switch sev {
		case schemas.SeverityCritical, schemas.SeverityHigh:
			code = red
		case schemas.SeverityMedium:
			code = yellow
		}
		tail := ""
		if len(f.Techniques) > 0 {
			tail = "  " + strings.Join(f.Techniques, " ")
		}
		p.printf("  %s %s %s\n", p.style(fmt.Sprintf("%-8s", sev), code), p.style(fmt.Sprintf("%-10s", f.Analyzer), dim), Clip(f.Title+tail, p.o.Width-22))
	}
}

// more stops a list that gets long, and says how much is left.
func (p *printer) more(i, n int) bool {
	if i < shortList || p.o.Full {
		return false
	}
	p.printf("  %s\n", p.style(fmt.Sprintf("… %d more (--full shows all)", n-i), dim))
	return true
}

// processes draws the tree.
func (p *printer) processes(r *schemas.Report) {
	if len(r.Processes) == 0 {
		return
	}
	p.title("processes", strconv.Itoa(len(r.Processes)))
	t := newTree(r.Processes)
	n := 0
	for _, root := range t.roots {
		if !p.tree(t, root, "", "", &n, len(r.Processes)) {
			return
		}
	}
}

func (p *printer) tree(t *tree, i int, first, rest string, n *int, total int) bool {
	if p.more(*n, total) {
		return false
	}
	*n++
	pr := t.list[i]
	what := strings.Join(pr.Argv, " ")
	if what == "" {
		what = cmp.Or(pr.Path, pr.Comm, "?")
	}
	end := ""
	switch {
	case pr.Signal != "":
		end = p.style("  "+pr.Signal, red)
	case pr.ExitCode != nil && *pr.ExitCode != 0:
		end = p.style(fmt.Sprintf("  exit %d", *pr.ExitCode), yellow)
	case pr.ExitCode == nil:
		end = p.style("  running", dim)
	}
	p.printf("  %s%s %s%s\n", p.style(first, dim), p.style(strconv.Itoa(pr.PID), cyan), Clip(what, p.o.Width-24-len(first)), end)
	kids := t.children[i]
	for k, c := range kids {
		branch, below := "├─ ", "│  "
		if k == len(kids)-1 {
			branch, below = "└─ ", "   "
		}
		if !p.tree(t, c, rest+branch, rest+below, n, total) {
			return false
		}
	}
	return true
}

// tree is the processes by parent. A process whose parent is not known, or
// whose parents go round in a circle, is a root.
type tree struct {
	list     []schemas.Process
	children map[int][]int
	roots    []int
}

func newTree(list []schemas.Process) *tree {
	t := &tree{list: list, children: map[int][]int{}}
	type key struct {
		pid   int
		start uint64
	}
	index := map[key]int{}
	for i, p := range list {
		index[key{p.PID, p.Start}] = i
	}
	for i, p := range list {
		parent, ok := index[key{p.Parent, p.ParentAt}]
		// A parent has begun before its child; anything else is a forgery.
		if !ok || parent == i || list[parent].Start > p.Start {
			t.roots = append(t.roots, i)
			continue
		}
		t.children[parent] = append(t.children[parent], i)
	}
	return t
}

func (p *printer) files(r *schemas.Report) {
	files := slices.Clone(r.Files)
	// What was changed interests more than what was read.
	slices.SortStableFunc(files, func(a, b schemas.FileActivity) int {
		return cmp.Compare(boolInt(!changed(a)), boolInt(!changed(b)))
	})
	if len(files) == 0 {
		return
	}
	p.title("files", strconv.Itoa(len(files)))
	for i, f := range files {
		if p.more(i, len(files)) {
			return
		}
		note := strings.Join(f.Actions, ",")
		if len(f.Errors) > 0 {
			note += " " + strings.Join(f.Errors, ",")
		}
		if f.Dropped != nil {
			note += " kept"
		}
		code := dim
		if changed(f) {
			code = yellow
		}
		p.printf("  %s %s\n", p.style(fmt.Sprintf("%-24s", Clip(note, 24)), code), Clip(f.Path, p.o.Width-28))
	}
}

func changed(f schemas.FileActivity) bool {
	for _, a := range f.Actions {
		if a != "open" && a != "read" {
			return f.Failed == 0 || f.Dropped != nil || f.Written > 0
		}
	}
	return false
}

func boolInt(b bool) int {
	if b {
		return 1
	}
	return 0
}

func (p *printer) network(r *schemas.Report) {
	n := r.Network
	if n.Address == "" && len(n.Connections) == 0 {
		return
	}
	p.title("network", fmt.Sprintf("%s, %d frames", cmp.Or(n.Address, "no address"), n.Frames))
	for i, c := range n.Connections {
		if p.more(i, len(n.Connections)) {
			return
		}
		to := c.Path
		if c.Address != "" {
			to = c.Address + ":" + strconv.Itoa(c.Port)
		}
		note := ""
		if len(c.Errors) > 0 {
			note = "  " + strings.Join(c.Errors, ",")
		}
		p.line(2, fmt.Sprintf("%-8s %-9s %s ×%d%s", c.Action, strings.TrimPrefix(c.Family, "AF_"), to, c.Count, note))
	}
}

func (p *printer) artifacts(r *schemas.Report) {
	if len(r.Artifacts) == 0 {
		return
	}
	p.title("artifacts", "petri get DIGEST")
	for i, a := range r.Artifacts {
		if p.more(i, len(r.Artifacts)) {
			return
		}
		p.printf("  %-9s %9s  %s  %s\n", a.Kind, Size(a.Size), p.style(a.SHA256.String()[:16], dim), Clip(a.Name, p.o.Width-42))
	}
}

func (p *printer) coverage(r *schemas.Report) {
	c := r.Coverage
	note := "whole"
	if !c.Whole {
		note = fmt.Sprintf("%d gaps", len(c.Gaps))
	}
	p.title("coverage", note)
	for i, g := range c.Gaps {
		if p.more(i, len(c.Gaps)) {
			break
		}
		p.printf("  %s %s\n", p.style("!", yellow), Clip(g, p.o.Width-4))
	}
	var parts []string
	for _, s := range c.Sources {
		if s.Produced > 0 {
			parts = append(parts, fmt.Sprintf("%s %d/%d", s.Source, s.Produced-min(s.Lost, s.Produced), s.Produced))
		}
	}
	if len(parts) > 0 {
		p.line(2, strings.Join(parts, ", ")+" records kept")
	}
	parts = nil
	for _, a := range c.Analyzers {
		parts = append(parts, fmt.Sprintf("%s %s (%d/%d)", a.Name, a.Status, a.Done+a.Skipped, a.Tasks))
	}
	if len(parts) > 0 {
		p.line(2, "analyzers: "+strings.Join(parts, ", "))
	}
}

func (p *printer) foot(r *schemas.Report) {
	p.printf("\n%s\n", p.style("analysis "+r.Analysis.ID, dim))
}

// Size is a number of bytes for people.
func Size(n int64) string {
	const unit = 1024
	if n < unit {
		return fmt.Sprintf("%d B", n)
	}
	div, exp := int64(unit), 0
	for m := n / unit; m >= unit && exp < 4; m /= unit {
		div *= unit
		exp++
	}
	return fmt.Sprintf("%.1f %ciB", float64(n)/float64(div), "KMGTP"[exp])
}
