// SPDX-License-Identifier: Apache-2.0

package behavior

import (
	"encoding/hex"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"github.com/petri-sandbox/petri/schemas/sysno"
	"github.com/petri-sandbox/petri/schemas/trace"
)

// Format renders a record in one line, much like strace:
//
//	openat(AT_FDCWD, "/etc/passwd", O_RDONLY|O_CLOEXEC) = 3
//	mkdir("/tmp", 0777) = -1 EEXIST (file exists)
//	connect(3, {AF_INET, 203.0.113.7:6667}, 16 <unfinished ...>
//	<... connect resumed>) = -1 EINPROGRESS (operation now in progress)
//	+++ exited with 0 +++
//
// What could be read only when the call returned is followed by a ~; where the
// call's beginning has a line of its own, it stands in the line of its end. Who did
// it is not part of the line.
func Format(r *trace.Record) string {
	switch r.Type {
	case trace.Syscall:
		return formatCall(r)
	case trace.Fork:
		kind := "process"
		if r.Args[5]&trace.ShareThread != 0 {
			kind = "thread"
		}
		child := r.Args[2]
		if r.Untold.Arg(2) { // of the thread
			child = r.Args[3]
		}
		return fmt.Sprintf("+++ new %s %d +++", kind, child)
	case trace.Exec:
		return "+++ executing " + formatExec(r) + " +++"
	case trace.Exit:
		if r.Args[1] != 0 {
			return "+++ thread ended +++"
		}
		if sig := int(r.Args[2] & 0x7f); sig != 0 {
			return "+++ killed by " + r.ABI.Signal(sig) + " +++"
		}
		return fmt.Sprintf("+++ exited with %d +++", r.Args[2]>>8&0xff)
	case trace.Stats:
		return fmt.Sprintf("+++ CPU %d: %d records, %d lost, %d unreadable, %d tasks untracked +++", r.Args[0], r.Args[1], r.Args[2], r.Args[3], r.Args[4])
	}
	return fmt.Sprintf("+++ record of type %d +++", r.Type)
}

// Thread is the number by which a record's thread is called in the sample's view,
// or its process where that is all that is known.
func Thread(r *trace.Record) uint32 {
	if r.Untold&trace.UntoldCPU != 0 {
		return r.Who.NSPID
	}
	return r.Who.NSTID
}

// Text writes a whole trace, a line per record that begins with the numbers of
// process and thread in the sample's view.
func Text(w io.Writer, r io.Reader) error {
	src, err := Open(r)
	if err != nil {
		return err
	}
	for {
		rec, err := src.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if _, err := fmt.Fprintf(w, "%d/%d %s\n", rec.Who.NSPID, rec.Who.NSTID, Format(rec)); err != nil {
			return err
		}
	}
}

func formatExec(r *trace.Record) string {
	name, _ := r.Text(trace.NoArg)
	s := strconv.QuoteToASCII(name)
	if a := r.Attached(trace.NoArg, trace.Argv); a != nil {
		s += ", " + quoteAll(a)
	}
	return s
}

func formatCall(r *trace.Record) string {
	c := r.Describe()
	name := c.Name
	if r.ABI != sysno.AMD64 && r.ABI != 0 && r.Untold&trace.UntoldCPU == 0 { // most are; others say so
		name = r.ABI.String() + ":" + name
	}
	if r.Flags&trace.Continued != 0 {
		var late []string
		for i := range c.Args {
			if slices.ContainsFunc(r.Attachments, func(a trace.Attachment) bool { return int(a.Arg) == i }) {
				late = append(late, formatArg(r, c, i))
			}
		}
		return strings.TrimRight("<... "+name+" resumed> "+strings.Join(late, ", "), " ") + ") = " + formatResult(r, c)
	}
	var args []string
	for i := range c.Args {
		if c.Args[i].Type == sysno.Mode && i > 0 && c.Args[i-1].Set == sysno.SetOpen && !r.Untold.Arg(i) && !creates(r, r.Args[i-1]) {
			break // open takes a mode only if it may create
		}
		args = append(args, formatArg(r, c, i))
	}
	s := name + "(" + strings.Join(args, ", ")
	if !r.Finished() {
		return s + " <unfinished ...>"
	}
	if r.Flags&trace.NoEntry != 0 {
		s += " /* beginning not seen */"
	}
	return s + ") = " + formatResult(r, c)
}

func creates(r *trace.Record, flags uint64) bool {
	tmp := r.ABI.Value(sysno.SetOpen, "O_TMPFILE")
	return flags&r.ABI.Value(sysno.SetOpen, "O_CREAT") != 0 || flags&tmp == tmp
}

// pointers are the calls whose result is an address.
var pointers = map[string]bool{"mmap": true, "mmap2": true, "mremap": true, "brk": true, "shmat": true}

func formatResult(r *trace.Record, c sysno.Call) string {
	if errno := r.ABI.Errno(r.Result); errno != "" {
		if text := sysno.ErrnoText(errno); text != "" {
			return "-1 " + errno + " (" + text + ")"
		}
		return "-1 " + errno
	}
	if pointers[c.Name] {
		return formatPtr(uint64(r.Result))
	}
	return strconv.FormatInt(r.Result, 10)
}

func formatPtr(v uint64) string {
	if v == 0 {
		return "NULL"
	}
	return "0x" + strconv.FormatUint(v, 16)
}

func formatArg(r *trace.Record, c sysno.Call, i int) string {
	v, g := r.Args[i], c.Args[i]
	for j := range r.Attachments {
		if a := &r.Attachments[j]; int(a.Arg) == i {
			return formatAttached(r, c, i, a)
		}
	}
	if r.Untold.Arg(i) {
		return "?"
	}
	switch g.Type {
	case sysno.Int, sysno.FD, sysno.PID, sysno.UID, sysno.GID:
		return strconv.Itoa(int(int32(v)))
	case sysno.DirFD:
		if int32(v) == atFDCWD {
			return "AT_FDCWD"
		}
		return strconv.Itoa(int(int32(v)))
	case sysno.Uint:
		return strconv.FormatUint(uint64(uint32(v)), 10)
	case sysno.Size:
		return strconv.FormatUint(v, 10)
	case sysno.Off:
		return strconv.FormatInt(int64(v), 10)
	case sysno.Mode:
		return octal(int(uint32(v)))
	case sysno.Sig:
		return r.ABI.Signal(int(int32(v)))
	case sysno.Enum:
		return r.ABI.Enum(g.Set, v)
	case sysno.Flags:
		return r.ABI.FlagNames(g.Set, v)
	case sysno.Hex, sysno.Dev, sysno.Prctl:
		return "0x" + strconv.FormatUint(v, 16)
	}
	return formatPtr(v)
}

func formatAttached(r *trace.Record, c sysno.Call, i int, a *trace.Attachment) string {
	if a.Flags&trace.Unreadable != 0 {
		if r.Flags&trace.Entry != 0 || executed(r, c) {
			return formatPtr(r.Args[i]) // it is tried again at the call's end, or the record of type Exec has it
		}
		return formatPtr(r.Args[i]) + " /* unreadable */"
	}
	var s string
	switch a.Kind {
	case trace.Argv, trace.Env:
		s = quoteAll(a)
	case trace.Struct:
		s = formatStruct(r, c.Args[i], a.Data)
	case trace.Sockaddr:
		s = formatAddress(r, a.Data)
		if b := r.Attached(uint8(i), trace.Bytes); b != nil { // of a message
			s = "{" + s + ", " + quote(b) + "}"
		}
	default:
		s = quote(a)
	}
	if a.Flags&trace.AtExit != 0 {
		s += "~"
	}
	return s
}

// executed reports whether a call put another program in the place of its
// caller, whose memory was gone when what could not be read at the call's
// beginning could have been tried again.
func executed(r *trace.Record, c sysno.Call) bool {
	return (c.Name == "execve" || c.Name == "execveat") && r.Finished() && r.Result == 0
}

func quote(a *trace.Attachment) string {
	s := strconv.QuoteToASCII(string(a.Data))
	if a.Flags&trace.Truncated != 0 {
		s += "..."
	}
	return s
}

func quoteAll(a *trace.Attachment) string {
	var list []string
	for _, s := range a.Strings(maxArgs) {
		list = append(list, strconv.QuoteToASCII(s))
	}
	if a.Flags&trace.Truncated != 0 {
		list = append(list, "...")
	}
	return "[" + strings.Join(list, ", ") + "]"
}

func formatAddress(r *trace.Record, b []byte) string {
	a := decodeAddress(b, r.ABI, r.Order.Bytes())
	switch {
	case a == nil:
		return "{}"
	case a.path != "":
		return "{" + a.family + ", " + strconv.QuoteToASCII(a.path) + "}"
	case strings.Contains(a.address, ":"):
		return fmt.Sprintf("{%s, [%s]:%d}", a.family, a.address, a.port)
	case a.address != "":
		return fmt.Sprintf("{%s, %s:%d}", a.family, a.address, a.port)
	}
	return "{" + a.family + "}"
}

// formatStruct renders what is worth it; of others the bytes.
func formatStruct(r *trace.Record, g sysno.Arg, b []byte) string {
	o := r.Order.Bytes()
	switch {
	case g.Type == sysno.OutFDs && len(b) == 8:
		return fmt.Sprintf("[%d, %d]", int32(o.Uint32(b)), int32(o.Uint32(b[4:])))
	case g.Type == sysno.OutInt && len(b) == 4:
		return fmt.Sprintf("[%d]", int32(o.Uint32(b)))
	case (g.Type == sysno.Timespec || g.Type == sysno.Timespec64) && len(b) == 16:
		return fmt.Sprintf("{%d s, %d ns}", int64(o.Uint64(b)), int64(o.Uint64(b[8:])))
	case g.Type == sysno.Timespec && len(b) == 8:
		return fmt.Sprintf("{%d s, %d ns}", int32(o.Uint32(b)), int32(o.Uint32(b[4:])))
	}
	return "{" + hex.EncodeToString(b) + "}"
}
