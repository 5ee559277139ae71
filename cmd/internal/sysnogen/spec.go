// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// spec is calls.txt.
type spec struct {
	calls   []call
	sets    []set
	classes []class // in the order of their first lines
}

type class struct {
	name  string
	calls []string
}

type call struct {
	name     string
	abi      string // "" is any, "32" any of 32 bits
	args     []arg
	entry    bool
	noReturn bool
}

type arg struct {
	typ string
	ref int    // K or N
	set string // of enum and flags
}

type set struct {
	name    string
	members []member
}

// member is one word of a set. kind is "" for a name, or mask or signal.
type member struct {
	name  string
	kind  string
	value *uint64           // nil: as x/sys says
	abis  map[string]uint64 // where it differs
}

// argTypes maps the words of calls.txt to the types of package sysno, and says
// whether one needs a number (n), a set (s) or nothing.
var argTypes = map[string]struct{ name, needs string }{
	"int": {"Int", ""}, "uint": {"Uint", ""}, "hex": {"Hex", ""}, "ptr": {"Ptr", ""},
	"size": {"Size", ""}, "off": {"Off", ""}, "mode": {"Mode", ""}, "dev": {"Dev", ""},
	"uid": {"UID", ""}, "gid": {"GID", ""}, "pid": {"PID", ""}, "sig": {"Sig", ""},
	"fd": {"FD", ""}, "dirfd": {"DirFD", ""}, "path": {"Path", ""}, "str": {"Str", ""},
	"in": {"In", "k"}, "out": {"Out", "k"}, "struct": {"Struct", "n"}, "outstruct": {"OutStruct", "n"},
	"sockaddr": {"Sockaddr", "k"}, "outsockaddr": {"OutSockaddr", "k"},
	"iov": {"Iov", "k"}, "outiov": {"OutIov", "k"},
	"msg": {"Msg", ""}, "outmsg": {"OutMsg", ""}, "mmsg": {"Mmsg", ""}, "outmmsg": {"OutMmsg", ""},
	"timespec": {"Timespec", ""}, "timespec64": {"Timespec64", ""},
	"argv": {"Argv", ""}, "envp": {"Envp", ""}, "outfds": {"OutFDs", ""}, "outint": {"OutInt", ""},
	"prctl": {"Prctl", ""}, "enum": {"Enum", "s"}, "flags": {"Flags", "s"},
}

func parseSpec(text string) (*spec, error) {
	s := &spec{}
	seen := map[string]bool{}
	for i, line := range strings.Split(text, "\n") {
		words := strings.Fields(line)
		if len(words) == 0 || strings.HasPrefix(words[0], "#") {
			continue
		}
		if len(words) < 2 {
			return nil, fmt.Errorf("line %d: %q has no name", i+1, words[0])
		}
		id := words[0] + " " + words[1]
		if seen[id] && words[0] != "class" {
			return nil, fmt.Errorf("line %d: %s is there twice", i+1, id)
		}
		seen[id] = true
		var err error
		switch words[0] {
		case "call":
			var c call
			if c, err = parseCall(words[1], words[2:]); err == nil {
				s.calls = append(s.calls, c)
			}
		case "set":
			var t set
			if t, err = parseSet(words[1], words[2:]); err == nil {
				s.sets = append(s.sets, t)
			}
		case "class":
			s.class(words[1], words[2:])
		default:
			err = fmt.Errorf("a line begins with call, set or class, not %q", words[0])
		}
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", i+1, err)
		}
	}
	for _, c := range s.calls {
		for _, a := range c.args {
			if a.set != "" && !slices.ContainsFunc(s.sets, func(t set) bool { return t.name == a.set }) {
				return nil, fmt.Errorf("call %s: there is no set %q", c.name, a.set)
			}
		}
	}
	return s, nil
}

// class adds calls to a class.
func (s *spec) class(name string, calls []string) {
	i := slices.IndexFunc(s.classes, func(c class) bool { return c.name == name })
	if i < 0 {
		i = len(s.classes)
		s.classes = append(s.classes, class{name: name})
	}
	s.classes[i].calls = append(s.classes[i].calls, calls...)
}

// holds reports whether a call is in a class: it is listed, or its arguments say
// so.
func (c class) holds(s *spec, name string) bool {
	if slices.Contains(c.calls, name) {
		return true
	}
	return slices.ContainsFunc(s.calls, func(call call) bool {
		return call.name == name && slices.ContainsFunc(call.args, func(a arg) bool {
			return c.name == "file" && a.typ == "Path" || c.name == "desc" && (a.typ == "FD" || a.typ == "DirFD")
		})
	})
}

func parseCall(name string, words []string) (call, error) {
	c := call{}
	c.name, c.abi, _ = strings.Cut(name, "@")
	for _, w := range words {
		switch w {
		case "!entry":
			c.entry = true
			continue
		case "!noreturn":
			c.noReturn = true
			continue
		}
		typ, rest, _ := strings.Cut(w, ":")
		t, ok := argTypes[typ]
		if !ok {
			return c, fmt.Errorf("call %s: no type %q", name, typ)
		}
		a := arg{typ: t.name}
		switch t.needs {
		case "s":
			a.set = rest
		case "k", "n":
			n, err := strconv.ParseUint(rest, 10, 8)
			if err != nil || t.needs == "k" && n > 5 || n == 0 && t.needs == "n" {
				return c, fmt.Errorf("call %s: %q needs a number", name, w)
			}
			a.ref = int(n)
		}
		if (t.needs == "") != (rest == "") {
			return c, fmt.Errorf("call %s: %q is wrong behind the colon", name, w)
		}
		c.args = append(c.args, a)
	}
	if len(c.args) > 6 {
		return c, fmt.Errorf("call %s has more than six arguments", name)
	}
	for _, a := range c.args {
		if a.ref >= len(c.args) && slices.Contains([]string{"In", "Out", "Sockaddr", "OutSockaddr", "Iov", "OutIov"}, a.typ) {
			return c, fmt.Errorf("call %s has no argument %d", name, a.ref)
		}
	}
	return c, nil
}

func parseSet(name string, words []string) (set, error) {
	s := set{name: name}
	for _, w := range words {
		if kind, bits, ok := strings.Cut(w, ":"); ok {
			v, err := strconv.ParseUint(bits, 0, 64)
			if err != nil || kind != "mask" && kind != "signal" {
				return s, fmt.Errorf("set %s: %q is neither mask:BITS nor signal:BITS", name, w)
			}
			s.members = append(s.members, member{kind: kind, value: &v})
			continue
		}
		word, text, given := strings.Cut(w, "=")
		word, abi, special := strings.Cut(word, "@")
		var v uint64
		if given {
			var err error
			if v, err = strconv.ParseUint(text, 0, 64); err != nil {
				return s, fmt.Errorf("set %s: %q has no number", name, w)
			}
		}
		switch last := len(s.members) - 1; {
		case special && (!given || last < 0 || s.members[last].name != word):
			return s, fmt.Errorf("set %s: %q must follow %s and have a value", name, w, word)
		case special:
			if s.members[last].abis == nil {
				s.members[last].abis = map[string]uint64{}
			}
			s.members[last].abis[abi] = v
		case given:
			s.members = append(s.members, member{name: word, value: &v})
		default:
			s.members = append(s.members, member{name: word})
		}
	}
	return s, nil
}
