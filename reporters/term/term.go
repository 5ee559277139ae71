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
	"unicode"
	"unicode/utf8"

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
	p.gates(r)
	p.console(r)
	p.findings(r)
	p.processes(r)
	p.files(r)
	p.network(r)
	p.artifacts(r)
	p.coverage(r)
	p.history(r)
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

// style cleans s, so that nothing that it wraps brings escapes of its own.
func (p *printer) style(s, code string) string {
	s = Clean(s)
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
		p.printf("  %s", p.style(Clip(note, p.o.Width-2-len(s)), dim))
	}
	p.printf("\n")
}

// Clean replaces what a terminal would obey, what hides or reorders text, and
// what is no text.
func Clean(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\t':
			return ' '
		case unicode.IsControl(r), unicode.In(r, unicode.Cf, unicode.Zl, unicode.Zp):
			return '\ufffd'
		}
		return r
	}, s)
}

// Clip cuts a string that is wider than width columns, and says so by an
// ellipsis. It is for text without styles.
func Clip(s string, width int) string {
	s = Clean(s)
	cut, used := 0, 0 // what fits beside an ellipsis
	for i, r := range s {
		if used <= width-1 {
			cut = i
		}
		if used += columns(r); used > width {
			return s[:cut] + strings.Repeat("…", min(1, max(0, width)))
		}
	}
	return s
}

// columns is how many a rune takes on most terminals.
func columns(r rune) int {
	switch {
	case unicode.In(r, unicode.Mn, unicode.Me):
		return 0
	case r >= 0x1100 && (r <= 0x115f || r >= 0x2e80 && r <= 0xa4cf || r >= 0xac00 && r <= 0xd7a3 || r >= 0xf900 && r <= 0xfaff ||
		r >= 0xfe30 && r <= 0xfe4f || r >= 0xff00 && r <= 0xff60 || r >= 0xffe0 && r <= 0xffe6 || r >= 0x1f300 && r <= 0x1faff || r >= 0x20000 && r <= 0x3fffd):
		return 2
	}
	return 1
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
	verdict := string(r.Verdict.Value)
	p.field("verdict", p.style(verdict, bold+";"+p.verdictStyle(r.Verdict.Value))+p.style("  "+Clip(strings.Join(r.Verdict.Reasons, "; "), p.o.Width-12-len(verdict)), dim))
	if m := r.Machine; m.Spec != nil {
		text := fmt.Sprintf("%s, %s start, %s, %s", m.Spec.Guest(), m.Spec.Start, m.Spec.Accel, Size(m.Spec.Memory))
		if m.Kernel != "" {
			text += ", Linux " + m.Kernel
		}
		switch {
		case r.Analysis.Options.Untraced:
			text += ", untraced"
		case m.Tracer != nil:
			text += ", traced by " + m.Tracer.Backend
		}
		p.field("machine", Clip(text, p.o.Width-10))
		if m.Fallback != "" {
			p.line(10, "booted: "+m.Fallback)
		}
		if m.Isolation != nil && m.Isolation.Reason != "" {
			p.line(10, "weakly isolated: "+m.Isolation.String())
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
	case c.Reason == schemas.ReasonStopped:
		note = "it still ran when its time was over, and was stopped"
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
		p.printf("  %s%s\n", p.style(prefix+"│ ", dim), Clip(strings.TrimSuffix(l, "\r"), p.o.Width-4-len(prefix)))
	}
}

// gates lists what services outside decided while the analysis waited for them.
func (p *printer) gates(r *schemas.Report) {
	var list []schemas.TimelineEntry
	for _, e := range r.Timeline {
		if e.Event == schemas.EventGateAnswered {
			list = append(list, e)
		}
	}
	if len(list) == 0 {
		return
	}
	p.title("gates", "")
	for i, e := range list {
		if p.more(i, len(list)) {
			return
		}
		p.printf("  %s %s\n", p.style(e.Time.UTC().Format(time.TimeOnly), dim), Clip(e.Detail, p.o.Width-11))
	}
}

func (p *printer) findings(r *schemas.Report) {
	if len(r.Findings) == 0 {
		return
	}
	p.title("findings", "")
	reused := map[string]bool{}
	for _, t := range r.Analyzers {
		if t.Reused != nil {
			reused[taskKey(t.Analyzer, t.Run, t.SHA256)] = true
		}
	}
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
		if reused[taskKey(f.Analyzer, f.Run, f.SHA256)] {
			tail += "  (reused)"
		}
		p.printf("  %s %s %s\n", p.style(fmt.Sprintf("%-8s", Clip(string(sev), 8)), code), p.style(fmt.Sprintf("%-10s", Clip(f.Analyzer, 32)), dim), Clip(f.Title+tail, p.o.Width-12-max(10, min(32, len(f.Analyzer)))))
	}
}

// taskKey names the task that an answer is of.
func taskKey(analyzer, run string, d *schemas.Digest) string {
	key := analyzer + " " + run
	if d != nil {
		key += " " + d.Token()
	}
	return key
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
		if !p.tree(t, root, nil, &n) {
			return
		}
	}
}

// maxIndent is how many levels of a tree are drawn; what lies deeper stands
// below the last of them, with its level.
const maxIndent = 12

// tree draws process i and those below it. above says of each level whether
// the one drawn there is its parent's last child.
func (p *printer) tree(t *tree, i int, above []bool, n *int) bool {
	if p.more(*n, len(t.list)) {
		return false
	}
	*n++
	var indent strings.Builder
	for level, last := range above[:min(len(above), maxIndent)] {
		drawn := level == min(len(above), maxIndent)-1
		switch {
		case drawn && last:
			indent.WriteString("└─ ")
		case drawn:
			indent.WriteString("├─ ")
		case last:
			indent.WriteString("   ")
		default:
			indent.WriteString("│  ")
		}
	}
	if len(above) > maxIndent {
		fmt.Fprintf(&indent, "(%d) ", len(above))
	}
	pr := t.list[i]
	what := strings.Join(pr.Argv, " ")
	if what == "" {
		what = cmp.Or(pr.Path, pr.Comm, "?")
	}
	if renamed(pr) {
		what = "[" + pr.Comm + "] " + what
	}
	end, code := "", dim
	switch {
	case pr.Signal != "":
		end, code = "  "+Clip(pr.Signal, 16), red
	case pr.ExitCode != nil && *pr.ExitCode != 0:
		end, code = fmt.Sprintf("  exit %d", *pr.ExitCode), yellow
	case pr.ExitCode == nil:
		end = "  running"
	}
	if pr.ArgvOmitted > 0 {
		end = fmt.Sprintf(" +%d arguments", pr.ArgvOmitted) + end
	}
	pid := strconv.Itoa(pr.PID)
	room := p.o.Width - 3 - utf8.RuneCountInString(indent.String()) - len(pid) - len(end)
	p.printf("  %s%s %s%s\n", p.style(indent.String(), dim), p.style(pid, cyan), Clip(what, room), p.style(end, code))
	kids := t.children[i]
	for k, c := range kids {
		if !p.tree(t, c, append(above[:len(above):len(above)], k == len(kids)-1), n) {
			return false
		}
	}
	return true
}

// maxComm is how much of a program's name the kernel gives its process.
const maxComm = 15

// renamed reports whether a process calls itself otherwise than its program.
func renamed(p schemas.Process) bool {
	base := p.Path[strings.LastIndexByte(p.Path, '/')+1:]
	return p.Path != "" && p.Comm != "" && p.Comm != base[:min(len(base), maxComm)]
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
		if !ok || cmp.Or(cmp.Compare(list[parent].Start, p.Start), cmp.Compare(parent, i)) >= 0 {
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
	p.title("artifacts", "whole digests: petri artifacts "+r.Analysis.ID)
	for i, a := range r.Artifacts {
		if p.more(i, len(r.Artifacts)) {
			return
		}
		p.printf("  %-9s %9s  %s  %s\n", Clip(string(a.Kind), 12), Size(a.Size), p.style(a.SHA256.String()[:16], dim), Clip(a.Name, p.o.Width-44))
	}
}

func (p *printer) coverage(r *schemas.Report) {
	c := r.Coverage
	note := "whole"
	switch {
	case len(c.Gaps) == 1:
		note = "1 gap"
	case !c.Whole:
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
	reused := map[string]int{}
	for _, t := range r.Analyzers {
		if t.Reused != nil {
			reused[t.Analyzer]++
		}
	}
	parts = nil
	for _, a := range c.Analyzers {
		text := fmt.Sprintf("%s %s (%d/%d", a.Name, a.Status, a.Done+a.Skipped, a.Tasks)
		if n := reused[a.Name]; n > 0 {
			text += fmt.Sprintf(", %d reused", n)
		}
		parts = append(parts, text+")")
	}
	if len(parts) > 0 {
		p.line(2, "analyzers: "+strings.Join(parts, ", "))
	}
	switch {
	case c.Foreign == 1:
		p.line(2, "1 foreign message left out")
	case c.Foreign > 1:
		p.line(2, fmt.Sprintf("%d foreign messages left out", c.Foreign))
	}
}

// history lists what the report said before runs were adopted.
func (p *printer) history(r *schemas.Report) {
	if len(r.History) < 2 {
		return
	}
	p.title("history", "of the verdict")
	for _, h := range r.History {
		s := fmt.Sprintf("%s  %s, %s, %d findings  %s", h.Time.UTC().Format("2006-01-02 15:04:05"), h.Outcome, h.Verdict, h.Findings, h.Event)
		if h.Run != "" {
			s += " " + h.Run + " by " + h.By
		}
		p.line(2, s)
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
