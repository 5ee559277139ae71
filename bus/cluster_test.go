// SPDX-License-Identifier: Apache-2.0

package bus_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/petri-sandbox/petri/bus"
	"github.com/petri-sandbox/petri/schemas"
)

// cluster runs n servers of one cluster and connects to the first.
func cluster(t *testing.T, n int) *bus.Bus {
	t.Helper()
	b, err := bus.Connect(t.Context(), bus.Address{URL: clusterURL(t, n, 2*time.Minute)}, "test")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Close)
	return b
}

// clusterURL runs n servers of one cluster, which write to the disk so often,
// or always, and returns the address of the first when it can be used.
func clusterURL(t testing.TB, n int, sync time.Duration) string {
	t.Helper()
	var routes []*url.URL
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		routes = append(routes, &url.URL{Scheme: "nats", Host: l.Addr().String()})
		l.Close()
	}
	var servers []*server.Server
	for i, r := range routes {
		var port int
		if _, err := fmt.Sscanf(r.Port(), "%d", &port); err != nil {
			t.Fatal(err)
		}
		s, err := server.NewServer(&server.Options{
			ServerName: fmt.Sprintf("n%d", i), Host: "127.0.0.1", Port: server.RANDOM_PORT, NoSigs: true, NoLog: true,
			MaxPayload: 4 << 20, JetStream: true, StoreDir: t.TempDir(), JetStreamMaxStore: 1 << 50, JetStreamMaxMemory: 1 << 30,
			SyncAlways: sync == 0, SyncInterval: sync,
			Cluster: server.ClusterOpts{Name: "test", Host: "127.0.0.1", Port: port}, Routes: routes,
		})
		if err != nil {
			t.Fatal(err)
		}
		s.Start()
		servers = append(servers, s)
	}
	t.Cleanup(func() {
		for _, s := range servers {
			s.Shutdown()
			s.WaitForShutdown()
		}
	})
	// The cluster has a leader, who knows of everybody.
	ready := func() bool {
		for _, s := range servers {
			if s.JetStreamIsLeader() {
				return len(s.JetStreamClusterPeers()) == n
			}
		}
		return false
	}
	for end := time.Now().Add(2 * time.Minute); !ready(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the cluster does not come up")
		}
	}
	var b *bus.Bus
	var err error
	for end := time.Now().Add(2 * time.Minute); ; time.Sleep(100 * time.Millisecond) {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		b, err = bus.Connect(ctx, bus.Address{URL: servers[0].ClientURL()}, "test")
		cancel()
		if err == nil {
			break
		}
		if time.Now().After(end) {
			t.Fatal(err)
		}
	}
	b.Close()
	return servers[0].ClientURL()
}

func replicas(t *testing.T, b *bus.Bus, stream string) int {
	t.Helper()
	s, err := b.JetStream().Stream(t.Context(), stream)
	if err != nil {
		t.Fatal(err)
	}
	return s.CachedInfo().Config.Replicas
}

func TestCluster(t *testing.T) {
	t.Parallel()
	b := cluster(t, 3)
	if err := b.Reconcile(t.Context(), bus.Limits{Log: 64 << 20, Store: 256 << 20}); err != nil {
		t.Fatal(err)
	}
	registrar(t, b)
	register(t, b, "static", schemas.KindSample)
	assets := []string{"LOG", "INBOX", "JOBS", "OBJ_ART", "OBJ_UP-static", "KV_LEASE", "KV_MEMO"}
	for _, stream := range assets {
		if n := replicas(t, b, stream); n != 3 {
			t.Errorf("%s has %d replicas", stream, n)
		}
	}
	if err := b.Reconcile(t.Context(), bus.Limits{Replicas: 1, Log: 64 << 20, Store: 256 << 20}); err != nil {
		t.Error(err)
	}
	for _, stream := range assets {
		if n := replicas(t, b, stream); n != 3 {
			t.Errorf("%s was cut down to %d replicas", stream, n)
		}
	}
	t.Run("one writer", func(t *testing.T) { oneWriter(t, b) })
	t.Run("the same bytes twice", func(t *testing.T) { sameBytes(t, b) })
	t.Run("the same small bytes by many", func(t *testing.T) { sameSmall(t, b) })
	t.Run("task", func(t *testing.T) {
		clerk(t, b)
		a := newAnalysis(t, b)
		a.artifact(schemas.KindSample, "the sample", 0)
		a.event(schemas.StartAnalysis{})
		finish(t, b, next(t, b, "static"), schemas.FinishedTask{Findings: []schemas.Finding{{Kind: "x", Title: "x"}}})
		if missing := a.wait(time.Minute, "static"); len(missing) != 0 {
			t.Errorf("missing: %+v; log: %v, INBOX has %d, DEAD %d", missing, a.names(), messages(t, b, "INBOX"), messages(t, b, "DEAD"))
		}
	})
}

// A cluster with too few servers may be starting: fewer copies are made only
// where somebody asks for them.
func TestSmallCluster(t *testing.T) {
	t.Parallel()
	b := cluster(t, 2)
	limits := bus.Limits{Log: 64 << 20, Store: 256 << 20}
	for d := 3 * time.Second; ; d *= 3 { // the servers may be slow to say that they are too few
		ctx, cancel := context.WithTimeout(t.Context(), d)
		err := b.Reconcile(ctx, limits)
		cancel()
		if errors.Is(err, context.DeadlineExceeded) && strings.Contains(err.Error(), "--replicas") {
			break
		}
		if !errors.Is(err, context.DeadlineExceeded) || d > time.Minute {
			t.Fatal(err)
		}
	}
	limits.Replicas = 1
	if err := b.Reconcile(t.Context(), limits); err != nil {
		t.Fatal(err)
	}
	if n := replicas(t, b, "LOG"); n != 1 {
		t.Errorf("%d replicas", n)
	}
	limits.Replicas = 2
	if err := b.Reconcile(t.Context(), limits); err != nil {
		t.Fatal(err)
	}
	for _, stream := range []string{"LOG", "KV_MEMO"} {
		if n := replicas(t, b, stream); n != 2 {
			t.Errorf("%s has %d replicas", stream, n)
		}
	}
}

// The hints of an older Petri's server, each of which it waits for, stay so.
func TestOlderMemo(t *testing.T) {
	t.Parallel()
	s, err := bus.StartServer(t.TempDir(), bus.ServerOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	b, err := s.Connect(t.Context(), "test")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Close)
	kv, err := b.JetStream().CreateKeyValue(t.Context(), jetstream.KeyValueConfig{Bucket: "MEMO", TTL: 90 * 24 * time.Hour, MaxBytes: 256 << 20, Storage: jetstream.FileStorage})
	if err == nil {
		_, err = kv.Put(t.Context(), "key", []byte("hint"))
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Reconcile(t.Context(), bus.Limits{Log: 64 << 20, Store: 256 << 20}); err != nil {
		t.Fatal(err)
	}
	if e, err := kv.Get(t.Context(), "key"); err != nil || string(e.Value()) != "hint" {
		t.Errorf("%v %v", e, err)
	}
}

// oneWriter has two writers of an analysis, of which the first must notice.
func oneWriter(t *testing.T, b *bus.Bus) *analysis {
	a := newAnalysis(t, b)
	a.event(schemas.Custom{Name: "mine"})
	second, err := b.OpenContext(t.Context(), "default", a.id)
	if err != nil {
		t.Fatal(err)
	}
	if second.Count() != 1 {
		t.Errorf("the second writer found %d events", second.Count())
	}
	write := func(w *bus.ContextWriter, name string) error {
		e, err := schemas.NewEvent("default", a.id, w.NextID(), time.Now(), schemas.OriginHost, schemas.Custom{Name: name})
		if err != nil {
			t.Fatal(err)
		}
		err = w.Write(t.Context(), e)
		if err == nil {
			a.books.Ack(e.ID)
		}
		return err
	}
	if err := write(second, "theirs"); err != nil {
		t.Fatal(err)
	}
	// The first one has the same number in mind, and must not take the other's
	// event for its own.
	if err := write(a.w, "mine_again"); !errors.Is(err, bus.ErrFenced) {
		t.Errorf("the first writer: %v", err)
	}
	if got := fmt.Sprint(a.names()); got != "[context mine context theirs]" {
		t.Errorf("events %s", got)
	}
	return a
}

// sameSmall has two processes put the same bytes at a time, in batches of which each
// finds the other's on its way.
func sameSmall(t *testing.T, b *bus.Bus) {
	other, err := bus.Connect(t.Context(), bus.Address{URL: b.JetStream().Conn().ConnectedUrl()}, "other")
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	for round := range 10 {
		want := schemas.Sum(fmt.Append(nil, "round ", round))
		var all sync.WaitGroup
		for n := range 24 {
			all.Go(func() {
				data := fmt.Append(nil, "round ", round)
				if n%3 == 0 { // or others, so that there are batches of several
					data = fmt.Append(data, "/", n)
				}
				d, _, err := []*bus.Bus{b, other}[n%2].Artifacts().PutBytes(t.Context(), schemas.KindDropped, data)
				if err != nil || d != schemas.Sum(data) {
					t.Errorf("%s: %v, %v", data, d, err)
				}
			})
		}
		all.Wait()
		if got, err := b.Artifacts().ReadAll(t.Context(), want, 100); err != nil || string(got) != fmt.Sprint("round ", round) {
			t.Errorf("%q, %v", got, err)
		}
	}
}

// sameBytes has the same bytes announced under two names, by two who both take
// theirs for the first announcement, of whom one says it twice.
func sameBytes(t *testing.T, b *bus.Bus) {
	a := newAnalysis(t, b)
	announce := func(name string, at time.Time) {
		t.Helper()
		art := schemas.Artifact{Kind: schemas.KindDropped, SHA256: schemas.Sum([]byte("bytes")), Size: 5, Name: name}
		e, err := schemas.NewEvent("default", a.id, art.ID(a.id), at, schemas.OriginHost, art)
		if err != nil {
			t.Fatal(err)
		}
		if err := b.PublishArtifact(t.Context(), e, &art); err != nil {
			t.Fatal(err)
		}
	}
	now := time.Now()
	announce("one", now)
	announce("two", now)
	announce("one", now)
	var got []string
	err := b.Read(t.Context(), "default", a.id, 0, func(e bus.Entry) error {
		var art schemas.Artifact
		if err := e.Event.Decode(&art); err != nil {
			return err
		}
		got = append(got, fmt.Sprint(art.Name, " ", art.Occurrence))
		return nil
	})
	if err != nil || fmt.Sprint(got) != "[one 0 two 1]" {
		t.Errorf("announced: %v, %v", got, err)
	}
}
