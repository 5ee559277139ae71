// SPDX-License-Identifier: Apache-2.0

package app_test

import (
	"bytes"
	"context"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/petri-sandbox/petri/analyzers/all"
	"github.com/petri-sandbox/petri/bus"
	"github.com/petri-sandbox/petri/bus/auth"
	"github.com/petri-sandbox/petri/schemas"
)

// TestAnalyzerCredentials runs the analyzers' daemon with the credentials of
// its role: it registers, and so does a command that was added, with its own.
func TestAnalyzerCredentials(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "bus")
	o := auth.Options{Hosts: []string{"127.0.0.1"}, MaxPayload: bus.MaxPayload}
	for _, a := range all.List() {
		o.Analyzers = append(o.Analyzers, a.Info().Name)
	}
	if err := auth.Init(dir, o); err != nil {
		t.Fatal(err)
	}
	if _, err := auth.AddUser(dir, auth.Analyzer, "mine", auth.UserOptions{}); err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(t.TempDir(), "analyzer")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", program, "../../analyzer").CombinedOutput(); err != nil {
		t.Fatalf("build the daemon: %v\n%s", err, out)
	}
	t.Chdir(filepath.Join(dir, "nodes", "127.0.0.1"))
	opts, err := server.ProcessConfigFile("nats.conf")
	if err != nil {
		t.Fatal(err)
	}
	opts.NoSigs, opts.NoLog, opts.Port = true, true, server.RANDOM_PORT
	opts.TLSTimeout, opts.AuthTimeout = 60, 60
	s, err := server.NewServer(opts)
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	t.Cleanup(func() {
		s.Shutdown()
		s.WaitForShutdown()
	})
	if !s.ReadyForConnections(time.Minute) {
		t.Fatal("the server does not start")
	}
	o.Port = s.Addr().(*net.TCPAddr).Port

	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	ca := filepath.Join(dir, "ca", "ca.pem")
	root, err := bus.Connect(ctx, bus.Address{URL: o.URL(), CA: ca, Creds: filepath.Join(dir, "users", "bus.creds")}, "bus")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(root.Close)
	if err := root.Reconcile(ctx, bus.Limits{Log: 64 << 20, Store: 256 << 20}); err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	serving, stop := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { _ = bus.NewClerk(root, log).Run(serving) })
	running.Go(func() { _ = bus.NewRegistrar(root, log).Run(serving) })
	defer func() {
		stop()
		running.Wait()
	}()

	var said bytes.Buffer
	daemon := exec.Command(program, "--only=static,mine", "--data", t.TempDir(), "--creds", filepath.Join(dir, "users", "analyzer-builtin.creds"))
	daemon.Env = append(os.Environ(), "PETRI_NATS="+o.URL(), "PETRI_CA="+ca)
	daemon.Stderr = &said
	if err := daemon.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = daemon.Process.Signal(syscall.SIGTERM)
		_ = daemon.Wait()
		if t.Failed() {
			t.Logf("the daemon says:\n%s", &said)
		}
	}()
	registered := func(name string) {
		t.Helper()
		for {
			states, err := root.Analyzers(ctx)
			if err != nil {
				t.Fatalf("wait for %s: %v", name, err)
			}
			for _, a := range states {
				if a.Name == name && a.Registration != nil && len(a.Instances) > 0 {
					return
				}
			}
			select {
			case <-time.After(100 * time.Millisecond):
			case <-ctx.Done():
				t.Fatalf("%s does not register", name)
			}
		}
	}
	registered("static")
	// It is added while the daemon runs, and what the daemon may not watch it finds.
	if err := root.Define(ctx, schemas.Definition{Schema: "petri.definition.v1", Dir: "/", Memory: 256 << 20, CPU: schemas.Duration(10 * time.Second), Timeout: schemas.Duration(10 * time.Second), MaxInput: 1 << 20, MaxOutput: 1 << 20, Processes: 1, Name: "mine", Version: "1.0.0", Kinds: []schemas.Kind{schemas.KindSample}, Argv: []string{"/bin/echo", `{"kind":"x","title":"x"}`}}); err != nil {
		t.Fatal(err)
	}
	registered("mine")

	id := schemas.NewID(time.Now())
	d, size, err := root.Artifacts().Put(ctx, schemas.KindSample, strings.NewReader("not much of a sample"))
	if err != nil {
		t.Fatal(err)
	}
	a := schemas.Artifact{Kind: schemas.KindSample, SHA256: d, Size: size}
	e, err := schemas.NewEvent(schemas.DefaultTenant, id, a.ID(id), time.Now(), schemas.OriginHost, a)
	if err != nil {
		t.Fatal(err)
	}
	if err := root.PublishArtifact(ctx, e, &a); err != nil {
		t.Fatal(err)
	}
	w, err := root.BeginContext(ctx, schemas.DefaultTenant, id)
	if err != nil {
		t.Fatal(err)
	}
	e, err = schemas.NewEvent(schemas.DefaultTenant, id, w.NextID(), time.Now(), schemas.OriginHost, schemas.StartAnalysis{})
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Write(ctx, e); err != nil {
		t.Fatal(err)
	}
	missing, err := root.Wait(ctx, schemas.DefaultTenant, id, time.Now().Add(2*time.Minute), []string{"static", "mine"})
	if err != nil || len(missing) > 0 {
		t.Fatalf("waited: missing %v, %v", missing, err)
	}
	done := map[string]any{}
	err = root.Read(ctx, schemas.DefaultTenant, id, 0, func(e bus.Entry) error {
		var r schemas.Receipt
		if e.Event.Family() == "receipt" && e.Event.Decode(&r) == nil {
			done[r.Task.Analyzer] = r.Status
		}
		return nil
	})
	if err != nil || done["static"] != schemas.TaskDone || done["mine"] != schemas.TaskDone {
		t.Errorf("the receipts say %v, %v", done, err)
	}
}
