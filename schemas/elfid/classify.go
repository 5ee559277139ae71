// SPDX-License-Identifier: Apache-2.0

package elfid

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"
	"unicode/utf8"

	"github.com/petri-sandbox/petri/schemas"
)

// maxScriptLine is how much of a file Linux looks at for its first line:
// BINPRM_BUF_SIZE.
const maxScriptLine = 256

// Formats of a [schemas.SampleType].
const (
	FormatELF     = "elf"
	FormatScript  = "script"
	FormatUnknown = "unknown"
)

// Classify says what the size bytes in r seem to be, before anything runs.
// Unsupported holds why Linux would not run them on any CPU; which guests
// there are is not asked here. The error is what r failed with.
func Classify(r io.ReaderAt, size int64) (schemas.SampleType, error) {
	f, err := parse(r, size)
	if err == nil {
		return f.sampleType(), nil
	}
	if !errors.Is(err, ErrNotELF) {
		return schemas.SampleType{}, err
	}
	in := input{r: r, size: size, left: MaxRead}
	b := in.at(0, 512)
	if in.err != nil {
		return schemas.SampleType{}, fmt.Errorf("read first bytes: %w", in.err)
	}
	if bytes.HasPrefix(b, []byte("#!")) {
		return script(b), nil
	}
	what := describe(b)
	t := schemas.SampleType{Format: FormatUnknown, Description: what}
	t.Unsupported = fmt.Sprintf("%s: neither an ELF file nor a script with an interpreter line", what)
	return t, nil
}

// Of returns the [schemas.SampleType] of a file whose identity is known to be
// id, without Unsupported.
func Of(id *schemas.ELFIdentity) schemas.SampleType {
	return schemas.SampleType{
		Format: FormatELF, Arch: id.Arch, Description: Describe(id), Class: id.Class, Endianness: id.Endianness,
		Machine: id.Machine, ObjectType: id.ObjectType,
	}
}

func (f *file) sampleType() schemas.SampleType {
	t := Of(&f.id)
	t.Unsupported = f.runs
	return t
}

// Describe is an identity in one line for people, in the words of file(1).
func Describe(id *schemas.ELFIdentity) string {
	order := "LSB"
	if id.Endianness == "big" {
		order = "MSB"
	}
	what := "file of type " + id.ObjectType
	switch {
	case id.ObjectType == "exec":
		what = "executable"
	case id.ObjectType == "dyn" && id.PIE:
		what = "pie executable"
	case id.ObjectType == "dyn":
		what = "shared object"
	case id.Module:
		what = "kernel module"
	case id.ObjectType == "rel":
		what = "relocatable"
	case id.ObjectType == "core":
		what = "core file"
	}
	cpu := id.Machine
	for _, m := range machines {
		if m.name == id.Machine {
			cpu = m.text // aliases have the same text
			break
		}
	}
	s := fmt.Sprintf("ELF %d-bit %s %s, %s", id.Class, order, what, cpu)
	switch {
	case id.Linkage == "dynamic":
		s += ", dynamically linked"
	case id.Linkage == "static" && id.PIE:
		s += ", static-pie linked"
	case id.Linkage == "static" && id.ObjectType == "exec":
		s += ", statically linked"
	}
	if id.Stripped != nil && id.Linkage != "none" {
		if *id.Stripped {
			s += ", stripped"
		} else {
			s += ", not stripped"
		}
	}
	return s
}

// script reads the first line as Linux does: the interpreter's path up to the
// first white space, and all of the rest as one argument.
func script(b []byte) schemas.SampleType {
	t := schemas.SampleType{Format: FormatScript}
	line := b[2:min(len(b), maxScriptLine)]
	if i := bytes.IndexAny(line, "\n\x00"); i >= 0 {
		line = line[:i]
	}
	t.Interpreter = text(strings.Trim(string(line), " \t"))
	interpreter, _ := Interpreter(t.Interpreter)
	t.Description = fmt.Sprintf("script for %q", interpreter)
	switch {
	case interpreter == "":
		t.Description = "script without an interpreter"
		t.Unsupported = "there is nothing behind #!"
	case strings.HasSuffix(t.Interpreter, "\r"):
		t.Description += ", with CRLF line ends, which Linux takes as part of the interpreter line"
	}
	return t
}

// Interpreter takes what follows #! apart: the path of the interpreter, and if that
// is env the name of the program that it looks for, of which Linux makes one argument
// whatever spaces it has. Where env is given options or a variable, none is told.
func Interpreter(line string) (interpreter, program string) {
	interpreter, argument, _ := strings.Cut(strings.ReplaceAll(line, "\t", " "), " ")
	argument = strings.Trim(argument, " ")
	if path.Base(interpreter) != "env" || strings.HasPrefix(argument, "-") || strings.ContainsAny(argument, "=/") {
		return interpreter, ""
	}
	return interpreter, argument
}

// SplitsArgument reports whether what follows #! is env with the option that makes
// words of its one argument, which busybox's env does not have.
func SplitsArgument(line string) bool {
	interpreter, argument, _ := strings.Cut(strings.ReplaceAll(line, "\t", " "), " ")
	argument, _, _ = strings.Cut(strings.TrimLeft(argument, " "), " ")
	short := strings.HasPrefix(argument, "-") && !strings.HasPrefix(argument, "--") && strings.Contains(argument, "S")
	return path.Base(interpreter) == "env" && (short || strings.HasPrefix(argument, "--split-string"))
}

// magics are what people submit by mistake or to other analyzers.
var magics = []struct{ prefix, what string }{
	{"MZ", "DOS or Windows program"},
	{"PK\x03\x04", "zip archive"},
	{"PK\x05\x06", "empty zip archive"},
	{"\x1f\x8b", "gzip data"},
	{"BZh", "bzip2 data"},
	{"\xfd7zXZ\x00", "xz data"},
	{"\x28\xb5\x2f\xfd", "zstd data"},
	{"7z\xbc\xaf\x27\x1c", "7z archive"},
	{"Rar!\x1a\x07", "rar archive"},
	{"!<arch>\n", "ar archive or Debian package"},
	{"\xed\xab\xee\xdb", "RPM package"},
	{"\xfe\xed\xfa\xce", "Mach-O file"},
	{"\xfe\xed\xfa\xcf", "Mach-O file"},
	{"\xce\xfa\xed\xfe", "Mach-O file"},
	{"\xcf\xfa\xed\xfe", "Mach-O file"},
	{"\xca\xfe\xba\xbe", "Java class or Mach-O universal file"},
	{"dex\n", "Android dex file"},
	{"%PDF-", "PDF document"},
	{"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "OLE document"},
	{"<?php", "PHP source"},
	{"\x89PNG\r\n\x1a\n", "PNG image"},
	{"\xff\xd8\xff", "JPEG image"},
	{"\xd4\xc3\xb2\xa1", "pcap capture"},
	{"\x0a\x0d\x0d\x0a", "pcapng capture"},
}

func describe(b []byte) string {
	if len(b) == 0 {
		return "empty file"
	}
	for _, m := range magics {
		if bytes.HasPrefix(b, []byte(m.prefix)) {
			return m.what
		}
	}
	if bytes.HasPrefix(magic, b) {
		return "data"
	}
	ascii := true
	for i := 0; i < len(b); {
		r, n := utf8.DecodeRune(b[i:])
		if r == utf8.RuneError && n == 1 && len(b)-i >= utf8.UTFMax || r < ' ' && !strings.ContainsRune("\t\n\v\f\r\b\x1b", r) || r == 0x7f {
			return "data"
		}
		ascii = ascii && r < utf8.RuneSelf
		i += n
	}
	if ascii {
		return "ASCII text"
	}
	return "UTF-8 text"
}
