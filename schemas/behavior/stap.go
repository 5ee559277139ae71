// SPDX-License-Identifier: Apache-2.0

package behavior

import (
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/petri-sandbox/petri/schemas/stap"
	"github.com/petri-sandbox/petri/schemas/sysno"
	"github.com/petri-sandbox/petri/schemas/trace"
)

// A StapWriter writes records as the text that package stap reads. It is for one
// goroutine.
//
// A call has its record when it has returned, or when its thread ends within it.
// An execution is a call of execve, with what the kernel has made of it, and new
// threads are left out: the text knows only processes. Text that the sample chose
// is escaped, and what would look like the beginning of a record too.
type StapWriter struct {
	w    io.Writer
	keep func(*trace.Record) bool
	t    *Tracker // for the names of threads
	join Joiner
	any  bool
}

// NewStapWriter returns a StapWriter that writes those records to w that keep
// takes, or all if it is nil.
func NewStapWriter(w io.Writer, keep func(*trace.Record) bool) *StapWriter {
	if keep == nil {
		keep = func(*trace.Record) bool { return true }
	}
	return &StapWriter{w: w, keep: keep, t: New(nil)}
}

// Add takes the next record, of which nothing is kept.
func (s *StapWriter) Add(r *trace.Record) error {
	comm := s.comm(r)
	s.t.Add(r)
	if now := s.comm(r); now != "" {
		comm = now
	}
	for _, r := range s.join.Join(r) {
		if err := s.record(r, comm); err != nil {
			return err
		}
	}
	return nil
}

// Close writes the calls that have not returned. It does not close the writer.
func (s *StapWriter) Close() error {
	for _, r := range s.join.Rest() {
		if err := s.record(r, s.comm(r)); err != nil {
			return err
		}
	}
	return s.header()
}

func (s *StapWriter) comm(r *trace.Record) string {
	if th := s.t.threads[r.TID]; th != nil {
		return th.comm
	}
	return ""
}

func (s *StapWriter) header() error {
	if s.any {
		return nil
	}
	s.any = true
	_, err := io.WriteString(s.w, stap.Magic)
	return err
}

func (s *StapWriter) record(r *trace.Record, comm string) error {
	if !s.keep(r) && !s.keep(asCall(r)) {
		return nil
	}
	c := r.Describe()
	switch {
	case r.Type == trace.Syscall:
		if execution(r, c) {
			return nil // the record of type Exec has it
		}
		if name, ok := opened(r, c); ok {
			if err := s.lines(stap.OpenFile, strconv.QuoteToASCII(name)); err != nil {
				return err
			}
		}
		var args []string
		for i := range c.Args {
			args = append(args, stapArg(r, c, i))
		}
		return s.lines(stap.Syscall, stapComm(comm), c.Name, strconv.Itoa(int(r.Who.NSPID)), strings.Join(args, ", "), stapResult(r, c))
	case r.Type == trace.Exec:
		args := formatExec(r)
		if r.Attached(trace.NoArg, trace.Argv) == nil {
			args += ", ?"
		}
		return s.lines(stap.Syscall, stapComm(comm), "execve", strconv.Itoa(int(r.Who.NSPID)), args, "0")
	case r.Type == trace.Fork && r.Args[5]&trace.ShareThread == 0:
		return s.lines(stap.Process, fmt.Sprintf("%d:%d", uint32(r.Args[3]), r.Who.NSPID))
	}
	return nil
}

// asCall is the call that an execution is written as, for who asks for calls;
// other records are themselves.
func asCall(r *trace.Record) *trace.Record {
	if r.Type != trace.Exec {
		return r
	}
	number, _ := sysno.AMD64.Number("execve")
	return &trace.Record{Type: trace.Syscall, ABI: sysno.AMD64, Call: uint32(number), Who: r.Who}
}

// execution reports whether a record of type Exec tells of a call, too. A text
// gives one only if it says what was executed.
func execution(r *trace.Record, c sysno.Call) bool {
	name := uint8(0)
	switch c.Name {
	case "execve", "execv":
	case "execveat":
		name = 1
	default:
		return false
	}
	_, ok := r.Text(name)
	return r.Finished() && r.Result == 0 && (ok || r.Untold&trace.UntoldCPU == 0)
}

// opened is the name that a call opens.
func opened(r *trace.Record, c sysno.Call) (string, bool) {
	switch c.Name {
	case "open":
		return r.Text(0)
	case "openat":
		return r.Text(1)
	}
	return "", false
}

func (s *StapWriter) lines(lines ...string) error {
	if err := s.header(); err != nil {
		return err
	}
	_, err := io.WriteString(s.w, strings.Join(lines, "\n")+"\n")
	return err
}

// stapComm is a thread's name on a line that begins no record.
func stapComm(s string) string {
	p := Printable(s)
	if stap.Keyword(p) {
		return `\x` + digits(uint64(p[0]), 2) + p[1:]
	}
	return p
}

func stapResult(r *trace.Record, c sysno.Call) string {
	if !r.Finished() {
		return ""
	}
	if errno := r.ABI.Errno(r.Result); errno != "" {
		return strconv.FormatInt(r.Result, 10) + " (" + errno + ")"
	}
	if pointers[c.Name] {
		return "0x" + strconv.FormatUint(uint64(r.Result), 16)
	}
	return strconv.FormatInt(r.Result, 10)
}

// stapArg renders an argument without what only this program knows of.
func stapArg(r *trace.Record, c sysno.Call, i int) string {
	plain := *r
	plain.Attachments = nil
	for _, a := range r.Attachments {
		if int(a.Arg) == i && a.Flags&trace.Unreadable == 0 {
			a.Flags &^= trace.AtExit
			plain.Attachments = append(plain.Attachments, a)
		}
	}
	to := plain.Attached(uint8(i), trace.Sockaddr)
	if to == nil {
		return formatArg(&plain, c, i)
	}
	text := stapAddress(r, to.Data)
	if b := plain.Attached(uint8(i), trace.Bytes); b != nil { // of a message
		text = "{" + text + ", " + quote(b) + "}"
	}
	return text
}

// stapAddress is formatAddress for who reads it again: a name's bytes are all
// there, and of families whose structures depend on the CPU only the family.
func stapAddress(r *trace.Record, b []byte) string {
	a := decodeAddress(b, r.ABI, r.Order.Bytes())
	switch {
	case a == nil:
		return "?"
	case a.family == "AF_UNIX" && len(b) > 2:
		path := string(b[2:])
		if path[0] != 0 {
			path, _, _ = strings.Cut(path, "\x00")
		}
		return "{AF_UNIX, " + strconv.QuoteToASCII(path) + "}"
	case a.address != "" && strings.HasPrefix(a.family, "AF_INET"):
		return formatAddress(r, b)
	}
	return "{" + a.family + "}"
}
