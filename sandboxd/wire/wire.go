// SPDX-License-Identifier: Apache-2.0

// Package wire is the protocol of the links that carry a guest's bytes: from
// guestd, PID 1 of the guest, to the supervisor of its machine, and from there
// to sandboxd. All ends use the same [Conn].
//
// A link is an ordered byte stream without message boundaries: a virtio-serial
// port or a socket. It carries frames: an 8-byte little-endian header (payload
// length uint32, type uint8, a zero byte, stream uint16) and at most
// [MaxPayload] bytes. Messages are JSON: requests, their responses, and events.
// Bulk bytes travel in numbered streams, each with a window that its receiver
// opens by credits, so that a receiver that stops reading stops one stream and
// not the link.
//
// The other side is an enemy: a guest's kernel belongs to the sample from its
// first instruction on. Everything read is bounded, and whatever breaks the
// rules ends the link with an error that wraps [ErrProtocol].
package wire

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"syscall"
)

// Version is the protocol's version. Hello carries it; the two ends refuse to
// talk when theirs differ.
const Version = 1

const (
	// MaxPayload bounds a frame's payload in bytes.
	MaxPayload = 64 << 10
	// Window is how many bytes of a stream may be on their way unread.
	Window = 256 << 10

	headerLen = 8
)

// ErrProtocol says that the other end broke the protocol.
var ErrProtocol = errors.New("guest protocol violated")

type frameType uint8

const (
	frameMessage frameType = iota + 1 // a JSON [message]
	frameData                         // bytes of a stream
	frameCredit                       // uint32: how many more bytes may be sent
	frameClose                        // end of a stream: a JSON [Status]
)

type frame struct {
	typ     frameType
	stream  uint16
	payload []byte
	barrier chan struct{} // in place of all else: closed when its turn comes
}

// Status ends a stream: how it ended, as its writer sees it.
type Status struct {
	Size   int64  `json:"size"`             // bytes that were written to the stream
	Cut    int64  `json:"cut,omitempty"`    // bytes left out because of a limit
	SHA256 string `json:"sha256,omitempty"` // of all bytes, hex, where the writer knows it
	Error  string `json:"error,omitempty"`
	// Detail is what else the two ends have agreed to say of it.
	Detail json.RawMessage `json:"detail,omitempty"`
}

type messageKind string

const (
	kindRequest  messageKind = "request"
	kindResponse messageKind = "response"
	kindEvent    messageKind = "event"
)

type message struct {
	Kind  messageKind     `json:"kind"`
	ID    uint32          `json:"id,omitempty"` // pairs a request and its response
	Name  string          `json:"name,omitempty"`
	Error *Error          `json:"error,omitempty"`
	Data  json.RawMessage `json:"data,omitempty"`
}

// An Error is a request's failure as the other end reports it.
type Error struct {
	Text  string `json:"text"`
	Errno string `json:"errno,omitempty"` // a name from errno(3), such as ENOEXEC, if a system call failed
}

func (e *Error) Error() string { return e.Text }

// appendFrame appends f's bytes to dst. The caller keeps payloads within
// [MaxPayload].
func appendFrame(dst []byte, f frame) []byte {
	dst = binary.LittleEndian.AppendUint32(dst, uint32(len(f.payload)))
	dst = append(dst, byte(f.typ), 0)
	dst = binary.LittleEndian.AppendUint16(dst, f.stream)
	return append(dst, f.payload...)
}

// readFrame reads one frame. The payload is the caller's own.
func readFrame(r io.Reader) (frame, error) {
	var h [headerLen]byte
	if n, err := io.ReadFull(r, h[:]); err != nil {
		if n == 0 && errors.Is(err, syscall.ECONNRESET) {
			err = io.EOF // it closed its end, and had not read everything
		}
		return frame{}, err
	}
	n := binary.LittleEndian.Uint32(h[:])
	f := frame{typ: frameType(h[4]), stream: binary.LittleEndian.Uint16(h[6:])}
	if n > MaxPayload {
		return frame{}, fmt.Errorf("%w: frame of %d bytes, more than %d", ErrProtocol, n, MaxPayload)
	}
	if f.typ < frameMessage || f.typ > frameClose || h[5] != 0 {
		return frame{}, fmt.Errorf("%w: unknown frame type %d", ErrProtocol, h[4])
	}
	if f.typ == frameCredit && n != 4 {
		return frame{}, fmt.Errorf("%w: credit of %d bytes", ErrProtocol, n)
	}
	f.payload = make([]byte, n)
	if _, err := io.ReadFull(r, f.payload); err != nil {
		return frame{}, unexpected(err)
	}
	return f, nil
}

func unexpected(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
