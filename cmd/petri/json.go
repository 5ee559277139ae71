// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"fmt"
	"io"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"
)

// printJSON writes one JSON document, indented.
func printJSON(w io.Writer, v any) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	return writeJSON(w, b)
}

// printLine writes one JSON document on one line.
func printLine(w io.Writer, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return writeJSON(w, b)
}

func writeJSON(w io.Writer, b []byte) error {
	_, err := w.Write(append(escapeJSON(b), '\n'))
	return err
}

// escapeJSON writes a JSON document's characters that do not print, all within
// strings, as \uXXXX: encoding/json leaves those that a terminal obeys (the C1
// controls) and those that turn the direction of what is read. The document
// stays the same to whoever parses it.
func escapeJSON(b []byte) []byte {
	out := make([]byte, 0, len(b))
	for len(b) > 0 {
		r, n := utf8.DecodeRune(b)
		switch {
		case r == '\n' || r == utf8.RuneError && n > 1 || r != utf8.RuneError && unicode.IsPrint(r):
			out = append(out, b[:n]...)
		case r > 0xffff:
			high, low := utf16.EncodeRune(r)
			out = fmt.Appendf(out, `\u%04x\u%04x`, high, low)
		default:
			out = fmt.Appendf(out, `\u%04x`, r)
		}
		b = b[n:]
	}
	return out
}
