// SPDX-License-Identifier: Apache-2.0

//go:build vm

package bus_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"math/rand/v2"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/petri-sandbox/petri/schemas"
)

// TestStockObjectGet has a client that is none of Petri's get artifacts that
// Petri wrote: what it receives is one zstd stream of the artifact's bytes.
func TestStockObjectGet(t *testing.T) {
	if _, err := exec.LookPath("node"); err != nil {
		t.Fatalf("%v: the test needs Node.js (install it: make setup)", err)
	}
	b, s := startAt(t, t.TempDir())
	noise := make([]byte, 5<<20+17)
	r := rand.NewChaCha8([32]byte{1})
	_, _ = r.Read(noise[1<<20:]) // the first frame shrinks, the others do not
	for name, body := range map[string][]byte{"small": []byte("a small artifact"), "many frames": noise} {
		d, _, err := b.Artifacts().Put(t.Context(), schemas.KindMemory, bytes.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		cmd := exec.CommandContext(ctx, "node", "object.mjs", d.String())
		cmd.Dir = "testdata/js"
		cmd.Env = append(os.Environ(), "NATS_URL="+s.Address().URL, "NATS_CREDS="+s.Address().Creds)
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		stored, err := cmd.Output()
		if err != nil {
			t.Fatalf("%s: %v\n%s(npm packages are installed by: make setup)", name, err, stderr.Bytes())
		}
		dec, err := zstd.NewReader(nil)
		if err != nil {
			t.Fatal(err)
		}
		got, err := dec.DecodeAll(stored, nil)
		dec.Close()
		if err != nil || sha256.Sum256(got) != d {
			t.Errorf("%s: %d bytes as stored, %d bytes out of it, with another digest; %v", name, len(stored), len(got), err)
		}
	}
}
