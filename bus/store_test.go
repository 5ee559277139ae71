// SPDX-License-Identifier: Apache-2.0

package bus_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/petri-sandbox/petri/bus"
	"github.com/petri-sandbox/petri/schemas"
)

// noise is n bytes that do not compress.
func noise(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{byte(n)}).Read(b)
	return b
}

func TestStoreRoundTrip(t *testing.T) {
	t.Parallel()
	b := start(t)
	st := b.Artifacts()
	for _, want := range [][]byte{{}, []byte("x"), noise(1 << 20), noise(1<<20 + 1), bytes.Repeat([]byte("zeros"), 1<<20), noise(9<<20 + 17)} {
		d, n, err := st.Put(t.Context(), schemas.KindMemory, bytes.NewReader(want))
		if err != nil {
			t.Fatal(err)
		}
		if d != sha256.Sum256(want) || n != int64(len(want)) {
			t.Errorf("put %d bytes: %d bytes, %s", len(want), n, d)
		}
		r, o, err := st.Open(t.Context(), d)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(r)
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("got %d of %d bytes, %v", len(got), len(want), err)
		}
		if o.Size != int64(len(want)) || o.Kind != schemas.KindMemory {
			t.Errorf("object %+v", o)
		}
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	}
}

// messages counts what a bucket's stream holds: chunks and meta records.
func messages(t *testing.T, b *bus.Bus, stream string) uint64 {
	t.Helper()
	s, err := b.JetStream().Stream(t.Context(), stream)
	if err != nil {
		t.Fatal(err)
	}
	info, err := s.Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return info.State.Msgs
}

// await waits until a stream has given n messages.
func await(t *testing.T, b *bus.Bus, stream string, n int) {
	t.Helper()
	cons, err := b.JetStream().OrderedConsumer(t.Context(), stream, jetstream.OrderedConsumerConfig{})
	if err != nil {
		t.Fatal(err)
	}
	got := make(chan struct{}, 1000)
	cc, err := cons.Consume(func(jetstream.Msg) { got <- struct{}{} })
	if err != nil {
		t.Fatal(err)
	}
	defer cc.Stop()
	late := time.After(2 * time.Minute)
	for i := range n {
		select {
		case <-got:
		case <-late:
			t.Fatalf("%s has given %d messages of %d", stream, i, n)
		}
	}
}

func TestStoreKeepsOnce(t *testing.T) {
	t.Parallel()
	b := start(t)
	want := noise(3 << 20)
	var wg sync.WaitGroup
	for range 6 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			if _, _, err := b.Artifacts().Put(context.Background(), schemas.KindDropped, bytes.NewReader(want)); err != nil {
				t.Error(err)
			}
		}()
	}
	wg.Wait()
	if n := messages(t, b, "OBJ_ART"); n != 4 {
		t.Errorf("%d messages for 3 chunks and a meta record", n)
	}
}

func TestStoreCap(t *testing.T) {
	t.Parallel()
	b := start(t)
	st := b.Artifacts().WithCaps(bus.Caps{schemas.KindDropped: 2 << 20})
	if _, _, err := st.Put(t.Context(), schemas.KindDropped, bytes.NewReader(noise(2<<20))); err != nil {
		t.Error(err)
	}
	before := messages(t, b, "OBJ_ART")
	if _, _, err := st.Put(t.Context(), schemas.KindDropped, bytes.NewReader(noise(2<<20+1))); !errors.Is(err, bus.ErrTooLarge) {
		t.Errorf("got %v", err)
	}
	if n := messages(t, b, "OBJ_ART"); n != before {
		t.Errorf("what was refused left %d messages", n-before)
	}
}

type brokenReader struct{ n int }

var errBroken = errors.New("broken")

func (r *brokenReader) Read(p []byte) (int, error) {
	if r.n <= 0 {
		return 0, errBroken
	}
	n := min(len(p), r.n)
	r.n -= n
	return n, nil
}

func TestStoreBrokenSource(t *testing.T) {
	t.Parallel()
	b := start(t)
	if _, _, err := b.Artifacts().Put(t.Context(), schemas.KindDropped, &brokenReader{n: 5 << 20}); !errors.Is(err, errBroken) {
		t.Errorf("got %v", err)
	}
	if n := messages(t, b, "OBJ_ART"); n != 0 {
		t.Errorf("it left %d messages", n)
	}
}

func TestStoreNotFound(t *testing.T) {
	t.Parallel()
	b := start(t)
	if _, _, err := b.Artifacts().Open(t.Context(), schemas.Sum([]byte("never"))); !errors.Is(err, bus.ErrNotFound) {
		t.Errorf("got %v", err)
	}
}

// TestStockGet reads our object as any NATS client would.
func TestStockGet(t *testing.T) {
	t.Parallel()
	b := start(t)
	want := noise(3<<20 + 5)
	d, _, err := b.Artifacts().Put(t.Context(), schemas.KindMemory, bytes.NewReader(want))
	if err != nil {
		t.Fatal(err)
	}
	os, err := b.JetStream().ObjectStore(t.Context(), "ART")
	if err != nil {
		t.Fatal(err)
	}
	o, err := os.Get(t.Context(), d.String())
	if err != nil {
		t.Fatal(err)
	}
	dec, err := zstd.NewReader(o)
	if err != nil {
		t.Fatal(err)
	}
	defer dec.Close()
	got, err := io.ReadAll(dec)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("got %d of %d bytes, %v", len(got), len(want), err)
	}
}

func TestStoreCorrupt(t *testing.T) {
	t.Parallel()
	for name, damage := range map[string]func(t *testing.T, s jetstream.Stream){
		"a chunk is missing": func(t *testing.T, s jetstream.Stream) {
			if err := s.DeleteMsg(t.Context(), 2); err != nil {
				t.Fatal(err)
			}
		},
		"all chunks are missing": func(t *testing.T, s jetstream.Stream) {
			if err := s.Purge(t.Context(), jetstream.WithPurgeSubject("$O.ART.C.>")); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			b := start(t)
			d, _, err := b.Artifacts().Put(t.Context(), schemas.KindMemory, bytes.NewReader(noise(3<<20)))
			if err != nil {
				t.Fatal(err)
			}
			s, err := b.JetStream().Stream(t.Context(), "OBJ_ART")
			if err != nil {
				t.Fatal(err)
			}
			damage(t, s)
			r, _, err := b.Artifacts().Open(t.Context(), d)
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			if _, err := io.ReadAll(r); !errors.Is(err, bus.ErrCorrupt) {
				t.Errorf("got %v", err)
			}
		})
	}
}
