// SPDX-License-Identifier: Apache-2.0

package main

import (
	"strings"
	"testing"
)

func TestParseSpec(t *testing.T) {
	s, err := parseSpec("# c\n\ncall openat dirfd path flags:open mode !entry\ncall mmap@i386 struct:24\nset open O_RDONLY mask:3 O_X=0x4 O_X@arm=8\n")
	if err != nil {
		t.Fatal(err)
	}
	if len(s.calls) != 2 || len(s.calls[0].args) != 4 || !s.calls[0].entry || s.calls[1].abi != "i386" || s.calls[1].args[0].ref != 24 {
		t.Errorf("calls %+v", s.calls)
	}
	if m := s.sets[0].members; len(m) != 3 || m[1].kind != "mask" || m[2].abis["arm"] != 8 {
		t.Errorf("members %+v", m)
	}
}

// TestClasses: a class has the calls that its lines list, and those whose
// arguments put them there.
func TestClasses(t *testing.T) {
	s, err := parseSpec("call openat dirfd path\ncall getpid\nclass desc dup\nclass file\nclass desc getpid\n")
	if err != nil {
		t.Fatal(err)
	}
	if len(s.classes) != 2 || s.classes[0].name != "desc" {
		t.Fatalf("classes %+v", s.classes)
	}
	for call, want := range map[string][2]bool{"openat": {true, true}, "getpid": {true, false}, "dup": {true, false}, "fork": {}} {
		if got := [2]bool{s.classes[0].holds(s, call), s.classes[1].holds(s, call)}; got != want {
			t.Errorf("%s is of classes desc, file: %v, want %v", call, got, want)
		}
	}
}

func TestParseSpecErrors(t *testing.T) {
	for in, want := range map[string]string{
		"call":                               "no name",
		"cal x":                              "begins with call, set or class",
		"call x strang":                      `no type "strang"`,
		"call x in size":                     "needs a number",
		"call x in:9 size":                   "needs a number",
		"call x in:1":                        "no argument 1",
		"call x size:1":                      "wrong behind the colon",
		"call x flags:nothing":               `no set "nothing"`,
		"call x int\ncall x int":             "line 2: call x is there twice",
		"call x int int int int int int int": "more than six",
		"set s mask:x":                       "neither mask:BITS",
		"set s A=x":                          "no number",
		"set s A@arm=1":                      "must follow A",
	} {
		if _, err := parseSpec(in); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: error %v, want one with %q", in, err, want)
		}
	}
}
