// SPDX-License-Identifier: Apache-2.0

// Package trace is the codec of system-call traces: what the tracer in a guest
// writes and everything on the host reads.
//
// A trace is a sequence of blocks, each of which can be read by itself. A block
// is a header ([Header], always little-endian) and records in the byte order of
// the guest's CPU. A record ([Record]) is one system call, or one fork, exec or
// exit, or counters: fixed 64-bit fields and attachments, the memory that the
// arguments pointed to. Numbers are left as the guest's kernel knows them;
// package sysno gives them names, package behavior a meaning.
//
// A trace is testimony of a hostile guest. Nothing in it is believed: sizes are
// bounded before they are used, decoding never panics, and what is broken is
// counted and skipped up to the next block.
//
// # Layout of a record
//
//	offset size
//	     0    2  length of the record in bytes, a multiple of 8
//	     2    1  type
//	     3    1  ABI, as in package sysno
//	     4    1  flags
//	     5    1  number of the sub-call of a multiplexed call, or 0
//	     6    1  number of arguments, at most 6
//	     7    1  number of attachments
//	     8    4  tid of the thread in the guest's initial pid namespace
//	    12    4  number of the system call
//	    16    8  when it began, ns since the guest's boot
//	    24    8  when it ended
//	    32    8  result
//	    40    8  instruction pointer
//	    48       arguments of 8 bytes each, then attachments
//
// An attachment is its argument's number (1 byte, [NoArg] if it is none), its
// kind (1), its flags (2), its length (4) and its bytes, padded with zeros to a
// multiple of 8.
//
// Who a thread is takes more than its tid: a record of type [Task] says it,
// before the first other record of that thread in every block. Such records
// have no numbers, and neither headers nor counters count them.
package trace

import (
	"encoding/binary"
	"errors"

	"github.com/petri-sandbox/petri/schemas/sysno"
)

// Version is the version of the format.
const Version = 1

// Limits of the format.
const (
	HeaderLen  = 48       // bytes of a block's header
	MaxBlock   = 32 << 10 // bytes of a block with its header
	RecordLen  = 48       // bytes of a record without arguments and attachments
	MaxRecord  = MaxBlock - HeaderLen
	MaxAttach  = 64 // attachments of a record
	attachLen  = 8  // bytes of an attachment's header
	magic      = "PtrB"
	recordUnit = 8 // records and attachments are multiples of this
)

// ErrFormat is wrapped by all errors about bytes that are no trace.
var ErrFormat = errors.New("malformed trace")

// An Order is the byte order of a block's records.
type Order uint8

// Byte orders, numbered as in ELF.
const (
	LittleEndian Order = 1
	BigEndian    Order = 2
)

// Bytes returns the order's decoder; that of little-endian if o is neither.
func (o Order) Bytes() binary.ByteOrder {
	if o == BigEndian {
		return binary.BigEndian
	}
	return binary.LittleEndian
}

// A Type says what a record shows. Readers skip types that they do not know.
type Type uint8

// Types of records, and what their arguments are where they are not those of a
// system call.
const (
	// Syscall is a system call of a thread.
	Syscall Type = 1
	// Fork is a new thread or process of the record's thread: the child's tid
	// and tgid, those in the sample's namespace, the start of its process, and
	// what it shares with its parent (Share…). It comes before everything that
	// the child does.
	Fork Type = 2
	// Exec is a new program in the record's process, proof that the kernel has
	// started it: the thread's tid before, inode and device of the file, the
	// numbers of arguments and variables, and the effective user.
	Exec Type = 3
	// Exit is the end of a thread: its wait status, the number of threads that
	// the process has left, and if that is 0 the wait status of the process.
	Exit Type = 4
	// Stats are the counters of one CPU of the guest: its number, records
	// produced and lost, attachments unreadable, tasks that could not be
	// tracked.
	Stats Type = 5
	// Task says who a thread is: its tgid, both numbers in the sample's pid
	// namespace, and the start of its process. A [Reader] keeps these records
	// to itself.
	Task Type = 6
)

// What a child shares with its parent, in the sixth argument of a [Fork].
const (
	ShareThread = 1 << iota // it is a thread of the same process
	ShareVM
	ShareFiles
	ShareFS
)

// Flags of a record.
type Flags uint8

const (
	// Entry: the call has begun; another record will show its end.
	Entry Flags = 1 << iota
	// Unfinished: the call had not returned when its thread ended, or when the
	// trace was flushed, in which case another record may show its end.
	Unfinished
	// Continued: the end of a call that an Entry record has shown; it repeats
	// no attachments.
	Continued
	// NoEntry: the call's beginning was not seen, because seccomp refused it or
	// it began before the thread was traced. Nothing was captured.
	NoEntry
	// Helper: the guest's kernel itself has started the process.
	Helper
)

// Kind says what an attachment is.
type Kind uint8

// Kinds of attachments.
const (
	String   Kind = 1 // without its NUL
	Bytes    Kind = 2 // the first bytes of a buffer, or of several
	Struct   Kind = 3
	Sockaddr Kind = 4
	Argv     Kind = 5 // NUL-terminated strings
	Env      Kind = 6 // NUL-terminated strings
	Comm     Kind = 7 // the thread's name
	Interp   Kind = 8 // the interpreter that an executed script names
	Cwd      Kind = 9 // NUL-terminated names of the current directory and its parents up to the root
)

// NoArg is the argument number of an attachment that belongs to none.
const NoArg = 0xff

// AttachFlags are the flags of an attachment.
type AttachFlags uint16

const (
	// Unreadable: the memory could not be read; there are no bytes. Where the
	// kernel could not read it either there is no attachment: the argument's
	// value is all that there was.
	Unreadable AttachFlags = 1 << iota
	// AtExit: what should have been read when the call began could be read only
	// when it returned, so that it may have been changed in between.
	AtExit
	// Truncated: there was more.
	Truncated
)

// An Attachment is memory that a record's argument pointed to.
type Attachment struct {
	Arg   uint8
	Kind  Kind
	Flags AttachFlags
	Data  []byte
}

// A Record is one thing that happened in a guest.
type Record struct {
	// Number is the record's place in the trace, from 0. It is not encoded:
	// blocks number their records.
	Number uint64
	// Order is that of the record's block: of the structures in attachments.
	// It is not encoded.
	Order Order

	Type   Type
	ABI    sysno.ABI
	Flags  Flags
	TID    uint32 // in the guest's initial pid namespace
	Call   uint32 // number of the system call
	Mux    uint8  // sub-call of a multiplexed call
	N      uint8  // number of arguments
	Begin  uint64 // ns since the guest's boot
	End    uint64 // 0 if it had not ended
	Result int64
	IP     uint64
	Args   [6]uint64 // those beyond N are 0

	Attachments []Attachment

	// Who is from the thread's [Task] record; a [Reader] fills it in.
	Who Identity
	// Untold is what is not known of it, because another format than this one has
	// told of it. It is not encoded.
	Untold Untold
}

// Untold says what of a record means nothing. Bit i is set if the value of
// argument i is not known.
type Untold uint8

// UntoldCPU says that neither CPU nor times nor thread are known: the ABI is one
// that has such a call, the byte order any, and the TID that of the process.
const UntoldCPU Untold = 1 << 7

// Arg reports whether the value of argument i is not known.
func (u Untold) Arg(i int) bool { return i < 6 && u>>i&1 != 0 }

// An Identity is the process that a thread belongs to. The zero value is that of
// a thread of which nothing is known.
type Identity struct {
	TGID  uint32 // in the guest's initial pid namespace
	NSTID uint32 // of the thread, in the sample's pid namespace
	NSPID uint32 // of the process, there
	Start uint64 // of the process, ns since the guest's boot
}

// TaskRecord is the record that gives a thread its identity.
func TaskRecord(abi sysno.ABI, tid uint32, who Identity) *Record {
	return &Record{
		Type: Task, ABI: abi, TID: tid, N: 4,
		Args: [6]uint64{uint64(who.TGID), uint64(who.NSTID), uint64(who.NSPID), who.Start},
	}
}

// Identity is what a record of type [Task] says.
func (r *Record) Identity() Identity {
	return Identity{TGID: uint32(r.Args[0]), NSTID: uint32(r.Args[1]), NSPID: uint32(r.Args[2]), Start: r.Args[3]}
}

// Finished reports whether the record has a result.
func (r *Record) Finished() bool { return r.Flags&(Entry|Unfinished) == 0 }

// Describe says what system call it is.
func (r *Record) Describe() sysno.Call { return sysno.Lookup(r.ABI, uint64(r.Call), r.Mux) }

// Attached returns the attachment of that kind at an argument, or nil.
func (r *Record) Attached(arg uint8, kind Kind) *Attachment {
	for i := range r.Attachments {
		if a := &r.Attachments[i]; a.Arg == arg && a.Kind == kind {
			return a
		}
	}
	return nil
}

// Text is the string attached to an argument. ok is false if none was captured
// or it was unreadable.
func (r *Record) Text(arg uint8) (text string, ok bool) {
	a := r.Attached(arg, String)
	if a == nil || a.Flags&Unreadable != 0 {
		return "", false
	}
	return string(a.Data), true
}

// Strings splits the attachment's NUL-terminated strings, at most limit. The
// last one may lack its end if the attachment was truncated.
func (a *Attachment) Strings(limit int) []string {
	var out []string
	for rest := a.Data; len(rest) > 0 && len(out) < limit; {
		i := 0
		for i < len(rest) && rest[i] != 0 {
			i++
		}
		out = append(out, string(rest[:i]))
		rest = rest[min(i+1, len(rest)):]
	}
	return out
}
