// SPDX-License-Identifier: Apache-2.0

package sysno

// A Capture says how the tracer reads the memory that an argument points to.
// The numbers are shared with the tracer's BPF program.
type Capture uint8

// Ways to capture. What the kernel writes (Out…) is read when the call returns,
// everything else when it begins.
const (
	CaptureNone        Capture = iota
	CaptureString              // until a NUL
	CaptureIn                  // Param: the argument with the length
	CaptureOut                 // Param: the argument with the room; the result is the length
	CaptureStruct              // Param: bytes
	CaptureOutStruct           // Param: bytes
	CaptureSockaddr            // Param: the argument with the length
	CaptureOutSockaddr         // Param: the argument that points to the length
	CaptureIov                 // Param: the argument with the number of buffers
	CaptureOutIov              // Param: the same; the result is the length
	CaptureMsg                 // a struct msghdr
	CaptureOutMsg
	CaptureMmsg // the first of an array of struct mmsghdr
	CaptureOutMmsg
	CaptureArgv  // an array of strings that ends with NULL
	CapturePrctl // a string if argument 0 is PR_SET_NAME
)

// A CaptureSpec says what the tracer does with a call.
type CaptureSpec struct {
	Kind  [6]Capture
	Param [6]uint8
	Entry bool
}

// CaptureOf says what to capture of the call of that number; mux is as in
// [Lookup].
func CaptureOf(a ABI, number uint64, mux uint8) CaptureSpec {
	c := Lookup(a, number, mux)
	s := CaptureSpec{Entry: c.Entry}
	for i, arg := range c.Args {
		s.Kind[i], s.Param[i] = arg.capture(a)
	}
	return s
}

func (g Arg) capture(a ABI) (Capture, uint8) {
	switch g.Type {
	case Path, Str:
		return CaptureString, 0
	case In:
		return CaptureIn, g.Ref
	case Out:
		return CaptureOut, g.Ref
	case Struct:
		return CaptureStruct, g.Ref
	case OutStruct:
		return CaptureOutStruct, g.Ref
	case Sockaddr:
		return CaptureSockaddr, g.Ref
	case OutSockaddr:
		return CaptureOutSockaddr, g.Ref
	case Iov:
		return CaptureIov, g.Ref
	case OutIov:
		return CaptureOutIov, g.Ref
	case Msg:
		return CaptureMsg, 0
	case OutMsg:
		return CaptureOutMsg, 0
	case Mmsg:
		return CaptureMmsg, 0
	case OutMmsg:
		return CaptureOutMmsg, 0
	case Timespec:
		return CaptureStruct, uint8(2 * a.Long())
	case Timespec64:
		return CaptureStruct, 16
	case OutFDs:
		return CaptureOutStruct, 8
	case OutInt:
		return CaptureOutStruct, 4
	case Argv:
		return CaptureArgv, 0
	case Prctl:
		return CapturePrctl, 0
	}
	return CaptureNone, 0
}
