package bus_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"testing"
	"time"

	"github.com/petri-sandbox/petri/bus"
	"github.com/petri-sandbox/petri/schemas"
)

func start(t testing.TB) *bus.Bus {
	t.Helper()
	s, err := bus.StartServer(t.TempDir(), bus.ServerOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	b, err := bus.Connect(context.Background(), s.Address(), "test")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Close)
	if err := b.Reconcile(context.Background(), bus.Limits{}); err != nil {
		t.Fatal(err)
	}
	return b
}

func TestStore(t *testing.T) {
	b := start(t)
	st := b.Artifacts()
	for _, n := range []int{0, 1, 1 << 20, 1<<20 + 1, 50 << 20} {
		p := make([]byte, n)
		rand.Read(p)
		begin := time.Now()
		d, size, err := st.Put(t.Context(), "memory", bytes.NewReader(p))
		if err != nil {
			t.Fatal(err)
		}
		fmt.Println(n, size, d, time.Since(begin))
		if d != sha256.Sum256(p) {
			t.Fatal("digest")
		}
		begin = time.Now()
		r, _, err := st.Open(t.Context(), d)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(r)
		r.Close()
		fmt.Println("get", time.Since(begin), err)
		if !bytes.Equal(got, p) {
			t.Fatal("differs")
		}
	}
	if f, err := os.Open("/tmp/k/vmlinux"); err == nil {
		begin := time.Now()
		_, n, err := st.Put(t.Context(), "memory", f)
		fmt.Println("vmlinux", n, time.Since(begin), err)
	}
}

func TestContextWriter(t *testing.T) {
	b := start(t)
	id := schemas.NewID(time.Now())
	w, err := b.OpenContext(t.Context(), "default", id)
	if err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	for range 100 {
		e, _ := schemas.NewEvent("default", id, w.NextID(), time.Now(), schemas.OriginHost, schemas.Custom{Name: "hello"})
		if err := w.Write(t.Context(), e); err != nil {
			t.Fatal(err)
		}
	}
	fmt.Println(time.Since(begin) / 100)
	begin = time.Now()
	es, err := b.Context(t.Context(), "default", id)
	fmt.Println(len(es), err, time.Since(begin))
	w2, _ := b.OpenContext(t.Context(), "default", id)
	e, _ := schemas.NewEvent("default", id, w2.NextID(), time.Now(), schemas.OriginHost, schemas.Custom{Name: "hello"})
	fmt.Println(w2.Write(t.Context(), e), w.Write(t.Context(), e))
	e.ID = id + "/context/zz"
	fmt.Println(w.Write(t.Context(), e), w2.Count())
}
