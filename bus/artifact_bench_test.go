// SPDX-License-Identifier: Apache-2.0

package bus_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/petri-sandbox/petri/bus"
	"github.com/petri-sandbox/petri/schemas"
)

// memoryLike makes what a dump of a guest's memory looks like to a compressor:
// half of it runs of zeroes, a fifth text, a quarter machine code, which is this
// program's own, and the rest noise.
func memoryLike(b *testing.B, size int) []byte {
	b.Helper()
	exe, err := os.Executable()
	if err != nil {
		b.Fatal(err)
	}
	code, err := os.ReadFile(exe)
	if err != nil {
		b.Fatal(err)
	}
	rnd := rand.New(rand.NewPCG(1, 2))
	words := strings.Fields("the log is what happened and nothing else root daemon usr lib systemd libc so kernel GET POST HTTP Host Accept error warning session opened for user closed by authentication status request timeout connect address family PATH HOME export return static void")
	out := make([]byte, 0, size+1<<20)
	for len(out) < size {
		n := 4096 * (1 + rnd.IntN(64))
		switch p := rnd.IntN(100); {
		case p < 50:
			out = append(out, make([]byte, n)...)
		case p < 70:
			for end := len(out) + n; len(out) < end; {
				out = fmt.Appendf(out, "%s %d ", words[rnd.IntN(len(words))], rnd.IntN(100_000))
			}
		case p < 95:
			at := rnd.IntN(len(code) - n)
			out = append(out, code[at:at+n]...)
		default:
			for range n / 8 {
				v := rnd.Uint64()
				out = append(out, byte(v), byte(v>>8), byte(v>>16), byte(v>>24), byte(v>>32), byte(v>>40), byte(v>>48), byte(v>>56))
			}
		}
	}
	return out[:size]
}

// rates are what came of the same bytes, in MB/s of them uncompressed.
type rates struct{ put, get float64 }

func rate(n int, d time.Duration) float64 { return float64(n) / 1e6 / d.Seconds() }

// BenchmarkArtifact puts an artifact into the store and gets it out again,
// beside what the same compressor does with a file, and what zstd does. Each
// hashes the bytes both ways and has them on the disk at the end.
func BenchmarkArtifact(b *testing.B) {
	data := memoryLike(b, 256<<20)
	var ref rates
	b.Run("file", func(b *testing.B) {
		for b.Loop() {
			ref = fileRates(b, data)
		}
		ref.report(b, rates{})
	})
	b.Run("zstd-1-T2", func(b *testing.B) {
		var r rates
		for b.Loop() {
			r = zstdRates(b, data)
		}
		r.report(b, ref)
	})
	for name, sync := range map[string]time.Duration{"sync=always": 0, "sync=1s": time.Second} {
		b.Run(name, func(b *testing.B) {
			var r rates
			for b.Loop() {
				r = storeRates(b, data, sync)
			}
			r.report(b, ref)
		})
	}
}

func (r rates) report(b *testing.B, ref rates) {
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(r.put, "put-MB/s")
	b.ReportMetric(r.get, "get-MB/s")
	if ref.put > 0 {
		b.ReportMetric(r.put/ref.put, "x-file-put")
		b.ReportMetric(r.get/ref.get, "x-file-get")
	}
}

func storeRates(b *testing.B, data []byte, sync time.Duration) rates {
	s, err := bus.StartServer(b.TempDir(), bus.ServerOptions{Sync: sync})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	c, err := bus.Connect(context.Background(), s.Address(), "bench")
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	if err := c.Reconcile(b.Context(), bus.Limits{Log: 1 << 30, Store: 4 << 30}); err != nil {
		b.Fatal(err)
	}
	begin := time.Now()
	d, _, err := c.Artifacts().Put(b.Context(), schemas.KindMemory, onlyReader{bytes.NewReader(data)})
	if err != nil {
		b.Fatal(err)
	}
	put := rate(len(data), time.Since(begin))
	begin = time.Now()
	r, _, err := c.Artifacts().Open(b.Context(), d)
	if err != nil {
		b.Fatal(err)
	}
	defer r.Close()
	if n, err := io.Copy(io.Discard, r); err != nil || n != int64(len(data)) {
		b.Fatalf("%d bytes: %v", n, err)
	}
	return rates{put, rate(len(data), time.Since(begin))}
}

// onlyReader hides what else a reader can: that it knows its size would be an
// advantage that a file being written does not have.
type onlyReader struct{ io.Reader }

func fileRates(b *testing.B, data []byte) rates {
	f, err := os.Create(filepath.Join(b.TempDir(), "artifact.zst"))
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	begin := time.Now()
	enc, err := zstd.NewWriter(f, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(2), zstd.WithEncoderCRC(true))
	if err != nil {
		b.Fatal(err)
	}
	sum := sha256.New()
	if _, err := io.Copy(io.MultiWriter(enc, sum), onlyReader{bytes.NewReader(data)}); err != nil {
		b.Fatal(err)
	}
	if err := enc.Close(); err != nil {
		b.Fatal(err)
	}
	if err := f.Sync(); err != nil {
		b.Fatal(err)
	}
	want := sum.Sum(nil)
	put := rate(len(data), time.Since(begin))
	begin = time.Now()
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		b.Fatal(err)
	}
	dec, err := zstd.NewReader(f, zstd.WithDecoderConcurrency(2))
	if err != nil {
		b.Fatal(err)
	}
	defer dec.Close()
	sum = sha256.New()
	if _, err := io.Copy(sum, dec); err != nil || !bytes.Equal(sum.Sum(nil), want) {
		b.Fatalf("other bytes: %v", err)
	}
	return rates{put, rate(len(data), time.Since(begin))}
}

func zstdRates(b *testing.B, data []byte) rates {
	bin, err := exec.LookPath("zstd")
	if err != nil {
		b.Fatal("zstd, to be compared with, is not installed: make setup")
	}
	dir := b.TempDir()
	run := func(in, out string, args ...string) time.Duration {
		begin := time.Now()
		if text, err := exec.CommandContext(b.Context(), bin, append(args, "-q", "-f", "-o", filepath.Join(dir, out), filepath.Join(dir, in))...).CombinedOutput(); err != nil {
			b.Fatalf("%v: %s", err, text)
		}
		f, err := os.Open(filepath.Join(dir, out))
		if err != nil {
			b.Fatal(err)
		}
		defer f.Close()
		if err := f.Sync(); err != nil {
			b.Fatal(err)
		}
		return time.Since(begin)
	}
	if err := os.WriteFile(filepath.Join(dir, "in"), data, 0o600); err != nil {
		b.Fatal(err)
	}
	put := rate(len(data), run("in", "zst", "-1", "-T2"))
	return rates{put, rate(len(data), run("zst", "out", "-d"))}
}
