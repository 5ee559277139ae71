// SPDX-License-Identifier: Apache-2.0

// Package stap reads the text that LiSa's SystemTap module writes of system
// calls, as records of package trace.
//
// The text is lines. The first is LISA; then come records of three kinds:
//
//	SYSCALL     a call: the name of the thread, that of the call, the process,
//	            the arguments and the result, which is empty if it never returns
//	PROCESS     a new process: CHILD:PARENT
//	OPENFILE    a name that open or openat was given, in quotes
//
// Nothing tells where a record ends but the number of its lines, and the names of
// threads and files are the sample's own. So what is read is testimony even more
// than a trace is: a line of a record that cannot be what it should be makes the
// record broken; it is counted, and reading goes on at the next line that names a
// kind. Package behavior writes the same text, with names escaped so that none can
// be taken for a record.
//
// The text has no times, no threads, no CPU and no counts of what was lost.
// Records say so ([trace.UntoldCPU]), and which arguments cannot be understood;
// nothing is made up in their place.
package stap

import (
	"bufio"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/petri-sandbox/petri/schemas/sysno"
	"github.com/petri-sandbox/petri/schemas/trace"
)

// Magic is how a text begins.
const Magic = Header + "\n"

// Lines that say what follows.
const (
	Header   = "LISA"
	Syscall  = "SYSCALL"
	Process  = "PROCESS"
	OpenFile = "OPENFILE"
)

// MaxLine bounds a line in bytes. SystemTap's strings are far shorter.
const MaxLine = 32 << 10

// Keyword reports whether a line says what follows.
func Keyword(line string) bool {
	return line == Header || line == Syscall || line == Process || line == OpenFile
}

// A Reader decodes a text, in constant memory. It is for one goroutine.
type Reader struct {
	r       *bufio.Reader
	ahead   []line // of a broken record, to be looked at again
	rec     trace.Record
	then    *trace.Record // what the last record means besides
	calls   map[string]described
	totals  trace.Totals
	unknown uint64 // calls of names that no kernel has
	opens   uint64 // names of opened files without a call that has one
}

// line is a line without its end.
type line struct {
	text string
	size int
	cut  bool // it is too long, or the text ends within it
}

// described is a call of one name.
type described struct {
	abi    sysno.ABI
	number uint64
	call   sysno.Call
	ok     bool
}

// maxCalls bounds names of calls that are remembered.
const maxCalls = 4096

// NewReader returns a Reader of r, which it reads ahead.
func NewReader(r io.Reader) *Reader {
	return &Reader{r: bufio.NewReaderSize(r, MaxLine), calls: map[string]described{}}
}

// Totals counts what was read so far. There are no blocks, and nobody has counted
// what was lost.
func (r *Reader) Totals() trace.Totals { return r.totals }

// Gaps says what the text cannot show, and what of it was not understood.
func (r *Reader) Gaps() []string {
	gaps := []string{"the trace is SystemTap's text: it has no times, no threads, no CPU and no count of lost records"}
	if r.unknown > 0 {
		gaps = append(gaps, fmt.Sprintf("%d calls have names that no kernel has", r.unknown))
	}
	if r.opens > 0 {
		gaps = append(gaps, fmt.Sprintf("%d names of opened files have no call", r.opens))
	}
	return gaps
}

// Next decodes the next record. It is the Reader's own until the next call, with
// its attachments. At the end the error is [io.EOF]; other errors are the
// stream's own. What is broken is no error: see [Reader.Totals].
func (r *Reader) Next() (*trace.Record, error) {
	if rec := r.then; rec != nil {
		r.then = nil
		return r.number(rec), nil
	}
	for {
		l, err := r.line()
		if err != nil {
			return nil, err
		}
		n, parse := 1, r.process
		switch {
		case l.cut:
			parse = nil
		case l.text == Header && r.totals.Records+r.totals.Skipped+r.totals.Bad == 0:
			continue
		case l.text == Syscall:
			n, parse = 5, r.syscall
		case l.text == Process:
		case l.text == OpenFile:
			parse = r.openFile
		default:
			parse = nil
		}
		if parse == nil {
			r.totals.Skipped += uint64(l.size)
			continue
		}
		fields, err := r.fields(n)
		if err != nil {
			return nil, err
		}
		rec, ok := (*trace.Record)(nil), len(fields) == n
		if ok {
			rec, ok = parse(fields)
		}
		if !ok {
			r.totals.Bad++
			r.ahead = append(fields, r.ahead...)
			continue
		}
		if rec != nil {
			return r.number(rec), nil
		}
	}
}

func (r *Reader) number(rec *trace.Record) *trace.Record {
	rec.Number = r.totals.Records
	r.totals.Records++
	return rec
}

// line reads the next line, however long it is.
func (r *Reader) line() (line, error) {
	if len(r.ahead) > 0 {
		l := r.ahead[0]
		r.ahead = r.ahead[1:]
		return l, nil
	}
	b, err := r.r.ReadSlice('\n')
	l := line{text: string(b), size: len(b), cut: err != nil}
	for err == bufio.ErrBufferFull {
		b, err = r.r.ReadSlice('\n')
		l.size += len(b)
	}
	switch {
	case err == io.EOF && l.size > 0, err == nil:
		l.text = strings.TrimSuffix(l.text, "\n")
		return l, nil
	}
	return line{}, err
}

// fields reads so many lines, or as many as there are.
func (r *Reader) fields(n int) ([]line, error) {
	var out []line
	for range n {
		l, err := r.line()
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil, err
		}
		out = append(out, l)
	}
	return out, nil
}

func (r *Reader) process(f []line) (*trace.Record, bool) {
	child, parent, _ := strings.Cut(f[0].text, ":")
	pid, ok1 := parsePID(child)
	of, ok2 := parsePID(parent)
	if f[0].cut || !ok1 || !ok2 {
		return nil, false
	}
	r.rec = trace.Record{
		Type: trace.Fork, ABI: sysno.AMD64, Order: trace.LittleEndian, Untold: trace.UntoldCPU | 1<<2 | 1<<4 | 1<<5,
		TID: of, Who: identity(of), N: 6, Args: [6]uint64{uint64(pid), uint64(pid), 0, uint64(pid)},
	}
	return &r.rec, true
}

func identity(pid uint32) trace.Identity { return trace.Identity{TGID: pid, NSPID: pid} }

// openFile counts a name that a call was given. The call's own record, which says
// more, comes behind it.
func (r *Reader) openFile(f []line) (*trace.Record, bool) {
	if f[0].cut || !strings.HasPrefix(f[0].text, `"`) {
		return nil, false
	}
	r.opens++
	return nil, true
}

func parsePID(s string) (uint32, bool) {
	n, err := strconv.ParseUint(s, 10, 31)
	return uint32(n), err == nil
}

func (r *Reader) syscall(f []line) (*trace.Record, bool) {
	comm, name, args, result := f[0].text, f[1].text, f[3].text, f[4].text
	pid, ok := parsePID(f[2].text)
	if !ok || !callName(name) || Keyword(args) || Keyword(result) {
		return nil, false
	}
	for _, l := range f {
		if l.cut {
			return nil, false
		}
	}
	d := r.describe(name)
	abi := d.abi
	if !d.ok {
		abi = sysno.AMD64
	}
	r.rec = trace.Record{
		Type: trace.Syscall, ABI: abi, Order: trace.LittleEndian, Untold: trace.UntoldCPU,
		TID: pid, Who: identity(pid), Call: uint32(d.number), N: uint8(len(d.call.Args)),
	}
	if !parseResult(&r.rec, result) {
		return nil, false
	}
	if !d.ok {
		r.unknown++
		return nil, true
	}
	if r.opens > 0 && (name == "open" || name == "openat") {
		r.opens--
	}
	r.rec.Attachments = append(r.rec.Attachments, trace.Attachment{Arg: trace.NoArg, Kind: trace.Comm, Data: []byte(unescape(comm))})
	parseArgs(&r.rec, d.call, args)
	r.then = executed(&r.rec, d.call)
	return &r.rec, true
}

func callName(s string) bool {
	return s != "" && len(s) <= 64 && strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789_") == "" && (s[0] < '0' || s[0] > '9')
}

// describe finds an ABI that has a call of that name.
func (r *Reader) describe(name string) described {
	d, seen := r.calls[name]
	for abi := sysno.AMD64; !seen && !d.ok && abi.Valid(); abi++ {
		if n, ok := abi.Number(name); ok {
			d = described{abi: abi, number: n, call: sysno.Lookup(abi, n, 0), ok: true}
		}
	}
	if !seen && len(r.calls) < maxCalls {
		r.calls[name] = d
	}
	return d
}

// executed is the record of the program that a call has started, if it has.
func executed(r *trace.Record, c sysno.Call) *trace.Record {
	name, argv := 0, 1
	switch c.Name {
	case "execve", "execv":
	case "execveat":
		name, argv = 1, 2
	default:
		return nil
	}
	path, ok := r.Text(uint8(name))
	if !ok || !r.Finished() || r.Result != 0 || name == 1 && r.Untold.Arg(0) {
		return nil
	}
	if fd := int32(r.Args[0]); name == 1 && fd != atFDCWD && !strings.HasPrefix(path, "/") {
		// The kernel's own name of it (fs/exec.c, alloc_bprm).
		path = strings.TrimSuffix(fmt.Sprintf("/dev/fd/%d/%s", fd, path), "/")
	}
	x := &trace.Record{
		Type: trace.Exec, ABI: r.ABI, Order: r.Order, Untold: trace.UntoldCPU | 1<<1 | 1<<2 | 1<<3 | 1<<4 | 1<<5,
		TID: r.TID, Who: r.Who, N: 6, Args: [6]uint64{uint64(r.TID)},
	}
	x.Attachments = []trace.Attachment{{Arg: trace.NoArg, Kind: trace.String, Data: []byte(path)}}
	if a := r.Attached(uint8(argv), trace.Argv); a != nil {
		all := *a
		all.Arg = trace.NoArg
		x.Attachments = append(x.Attachments, all)
		if a.Flags&trace.Truncated == 0 {
			x.Untold &^= 1 << 3
			x.Args[3] = uint64(strings.Count(string(a.Data), "\x00"))
		}
	}
	if comm := r.Attached(trace.NoArg, trace.Comm); comm != nil {
		x.Attachments = append(x.Attachments, *comm)
	}
	return x
}

// parseResult reads 3, 0x7f0000000000, -2 (ENOENT) or nothing.
func parseResult(r *trace.Record, s string) bool {
	if s == "" {
		r.Flags |= trace.Unfinished
		return true
	}
	number, name, named := strings.Cut(strings.TrimSuffix(s, ")"), " (")
	if n, err := strconv.ParseInt(number, 10, 64); err == nil {
		r.Result = n
	} else if n, err := strconv.ParseUint(number, 0, 64); err == nil {
		r.Result = int64(n)
	} else {
		return false
	}
	if named != strings.HasSuffix(s, ")") {
		return false
	}
	if named { // errors have other numbers on some CPUs
		n, ok := r.ABI.ParseErrno(name)
		if !ok || r.Result >= 0 {
			return false
		}
		r.Result = -int64(n)
	}
	return true
}
