// SPDX-License-Identifier: Apache-2.0

//go:build vm

package app_test

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/petri-sandbox/petri/sandboxd/image"
	"github.com/petri-sandbox/petri/schemas"
)

// started is the proof of execution in an analysis' log; nil: there is none.
func started(t *testing.T, bin, data, analysis string) *schemas.SampleStarted {
	t.Helper()
	dec := json.NewDecoder(strings.NewReader(run(t, bin+"/petri", "--data", data, "--json", "events", analysis)))
	for dec.More() {
		var e schemas.Event
		if err := dec.Decode(&e); err != nil {
			t.Fatal(err)
		}
		var s schemas.SampleStarted
		if e.Type == s.EventType() {
			if err := e.Decode(&s); err != nil {
				t.Fatal(err)
			}
			return &s
		}
	}
	return nil
}

// compile compiles a source of the test's own and returns the file.
func compile(t *testing.T, name, source string, command ...string) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(dir+"/source.c", []byte(source), 0o600); err != nil {
		t.Fatal(err)
	}
	run(t, command[0], append(command[1:], "-o", dir+"/"+name, dir+"/source.c")...)
	return dir + "/" + name
}

const hello = `#include <stdio.h>
int main(void) { puts("it ran"); return 7; }
`

// TestRunKinds runs a sample of each kind that a guest takes.
func TestRunKinds(t *testing.T) {
	bin := build(t)
	_, data := up(t, bin)
	script := func(text string) string {
		path := filepath.Join(t.TempDir(), "script")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for _, tt := range []struct {
		name, file, stdout, how string
		args                    []string
	}{
		{"musl, dynamic", compile(t, "sample", hello, "musl-gcc"), "it ran\n", "", nil},
		{"musl, static", compile(t, "sample", hello, "musl-gcc", "-static"), "it ran\n", "", nil},
		{"glibc, static and position independent", compile(t, "sample", hello, "gcc", "-static-pie"), "it ran\n", "", nil},
		{"bash", script("#!/bin/bash\na=(x y); echo ${a[1]} $BASH_VERSION | cut -c1-3\n"), "y 5\n", "", nil},
		{"perl by env", script("#!/usr/bin/env perl\nuse Socket; print join('-', @ARGV), \"\\n\"\n"), "a-b\n", "", []string{"--", "a", "b"}},
		{"shared object", compile(t, "hook.so", `#include <stdio.h>
__attribute__((constructor)) static void begin(void) { puts("constructor"); fflush(stdout); }
`, "gcc", "-shared", "-fPIC"), "constructor\n", schemas.HowMapped, nil},
		{"shared object that does not return", compile(t, "hook.so", `#include <unistd.h>
__attribute__((constructor)) static void begin(void) { write(1, "stays\n", 6); for (;;) pause(); }
`, "gcc", "-shared", "-fPIC"), "stays\n", schemas.HowMapped, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r, _, _ := detonate(t, bin, data, append([]string{"--runtime", "3s", tt.file}, tt.args...)...)
			if r.Outcome.Value != schemas.OutcomeCompleted || r.Console.Stdout != tt.stdout {
				t.Fatalf("outcome %+v, it printed %q and %q", r.Outcome, r.Console.Stdout, r.Console.Stderr)
			}
			s := started(t, bin, data, r.Analysis.ID)
			if s == nil || s.How != tt.how || s.SHA256 != r.Sample.SHA256 {
				t.Errorf("the proof of execution: %+v", s)
			}
		})
	}
}

// kernelModule takes a module out of the kernel's package that the guest was
// built from.
func kernelModule(t *testing.T, name string) []byte {
	t.Helper()
	images, err := image.List(cache())
	if err != nil || len(images) == 0 {
		t.Fatalf("no image: %v", err)
	}
	i := slices.IndexFunc(images, func(i *image.Image) bool { return i.Arch == "amd64" })
	deb := filepath.Join(cache(), "apt/amd64/debs", images[i].Packages[0].SHA256+".deb")
	tar := exec.CommandContext(t.Context(), "dpkg-deb", "--fsys-tarfile", deb)
	pick := exec.CommandContext(t.Context(), "tar", "-xO", "--wildcards", "*/"+name)
	if pick.Stdin, err = tar.StdoutPipe(); err != nil {
		t.Fatal(err)
	}
	if err := tar.Start(); err != nil {
		t.Fatal(err)
	}
	b, err := pick.Output()
	if err != nil || len(b) == 0 {
		t.Fatalf("take %s out of %s: %v", name, deb, err)
	}
	_ = tar.Wait() // tar may have seen enough
	return b
}

// TestRunModule has the guest's kernel take in modules: one of its own, one that
// says that it is for another kernel, and two that it refuses; and runs programs that
// tamper with it.
func TestRunModule(t *testing.T) {
	bin := build(t)
	_, data := up(t, bin)
	own := kernelModule(t, "dummy.ko")
	magic, signature := bytes.Index(own, []byte("vermagic=")), bytes.LastIndex(own, []byte("~Module signature appended~"))
	if magic < 0 || signature < magic {
		t.Fatal("the module has no vermagic, or no signature")
	}
	other := bytes.Clone(own[:signature]) // else its signature is wrong
	// Behind the release, which the kernel passes over where symbols have versions.
	other[magic+bytes.IndexByte(other[magic:], ' ')+1] = 'X'
	broken := append(bytes.Clone(own[:len(own)/2]), make([]byte, len(own)-len(own)/2)...)
	for _, tt := range []struct {
		name    string
		module  []byte
		args    []string
		outcome schemas.Outcome
		forced  bool
	}{
		{"own kernel", own, nil, schemas.OutcomeIncomplete, false},
		{"with parameters", own, []string{"--", "numdummies=3"}, schemas.OutcomeIncomplete, false},
		{"another kernel", other, nil, schemas.OutcomeIncomplete, true},
		{"parameters that it refuses", own, []string{"--", "numdummies=many"}, schemas.OutcomeNotExecuted, false},
		{"broken", broken, nil, schemas.OutcomeUnsupported, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "rootkit.ko")
			if err := os.WriteFile(file, tt.module, 0o600); err != nil {
				t.Fatal(err)
			}
			r, _, _ := detonate(t, bin, data, append([]string{"--runtime", "2s", file}, tt.args...)...)
			if r.Outcome.Value != tt.outcome {
				t.Fatalf("outcome %+v", r.Outcome)
			}
			s := started(t, bin, data, r.Analysis.ID)
			if ran := tt.outcome == schemas.OutcomeIncomplete; ran != (s != nil) {
				t.Fatalf("the proof of execution: %+v", s)
			} else if ran && (s.How != schemas.HowLoaded || s.Forced != tt.forced) {
				t.Errorf("the proof of execution: %+v", s)
			} else if a := r.Coverage.Tampering; ran && (a == nil || a.First.Call != "finit_module" || len(r.Coverage.Gaps) != 1) {
				// From its first instruction on a module may change what records it.
				t.Errorf("after possible tampering: %+v, gaps %q", a, r.Coverage.Gaps)
			}
		})
	}
	t.Run("a root that tampers", func(t *testing.T) { tamper(t, bin, data, own) })
	t.Run("calls that are held often", func(t *testing.T) { tamperOften(t, bin, data) })
}

// TestRunDisguised gives a sample a name and a clock of its own.
func TestRunDisguised(t *testing.T) {
	bin := build(t)
	_, data := up(t, bin)
	path := filepath.Join(t.TempDir(), strings.Repeat("0123456789abcdef", 4))
	if err := os.WriteFile(path, []byte("#!/bin/sh\nbasename \"$0\"; date +%Y-%m-%d\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		args  []string
		check func(name, day string) bool
	}{
		{[]string{"--name", "updater"}, func(name, day string) bool { return name == "updater" && day > "2026" }},
		{[]string{"--name", "random", "--clock", "2019-03-04T05:06:07Z"}, func(name, day string) bool {
			return len(name) == 8 && !strings.HasPrefix(name, "0123") && day == "2019-03-04"
		}},
	} {
		r, _, _ := detonate(t, bin, data, append(tt.args, path)...)
		lines := strings.Split(r.Console.Stdout, "\n")
		if r.Outcome.Value != schemas.OutcomeCompleted || len(lines) != 3 || !tt.check(lines[0], lines[1]) {
			t.Errorf("%v: outcome %+v, it printed %q", tt.args, r.Outcome, r.Console.Stdout)
		}
	}
}
