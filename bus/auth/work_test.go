// SPDX-License-Identifier: Apache-2.0

package auth_test

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/petri-sandbox/petri/bus"
	"github.com/petri-sandbox/petri/bus/auth"
	"github.com/petri-sandbox/petri/bus/faults"
	"github.com/petri-sandbox/petri/schemas"
)

// TestRolesWork takes an analysis through every role, each with credentials that
// allow it nothing else.
func TestRolesWork(t *testing.T) { both(t, workOn) }

func workOn(t *testing.T, dir, url string) {
	as := func(r auth.Role, name string) *bus.Bus {
		user, err := auth.UserName(r, name)
		if err != nil {
			t.Fatal(err)
		}
		b, err := bus.Connect(t.Context(), address(dir, url, user), user)
		if err != nil {
			t.Fatalf("connect as %s: %v", user, err)
		}
		t.Cleanup(b.Close)
		return b
	}
	root := as(auth.Bus, "")
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	if err := root.Reconcile(ctx, bus.Limits{Log: 64 << 20, Store: 256 << 20}); err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	serving, stop := context.WithCancel(context.Background())
	var running sync.WaitGroup
	clerk, archiver := as(auth.Clerk, ""), as(auth.Archiver, "")
	running.Go(func() { _ = bus.NewClerk(clerk, log).Run(serving) })
	running.Go(func() { _ = bus.NewRegistrar(root, log).Run(serving) })
	running.Go(func() { _ = bus.NewDesk(root, log).Run(serving) })
	defer func() {
		stop()
		running.Wait()
	}()
	must := func(what string, err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}

	yara := as(auth.Analyzer, "yara")
	reg := schemas.Registration{Name: "yara", Version: "1.0.0", Scope: schemas.ScopeArtifact, Kinds: []schemas.Kind{schemas.KindSample}, Deadline: schemas.Duration(time.Minute)}
	must("register", yara.Register(ctx, reg))
	other := reg
	other.Name = "capa"
	if err := yara.Register(ctx, other); !errors.Is(err, bus.ErrDenied) {
		t.Errorf("register as another: %v", err)
	}

	user := as(auth.User, "acme")
	text := strings.Repeat("not much of a sample ", 100_000)
	sub := schemas.Submission{ID: schemas.NewID(time.Now()), Tenant: "acme", Profile: "amd64", Submitted: time.Now(), Sample: schemas.Sample{Size: int64(len(text))}}
	d, size, err := user.SubmitSample(ctx, sub, strings.NewReader(text))
	must("submit", err)
	if err := user.Submit(ctx, sub); !errors.Is(err, bus.ErrDenied) {
		t.Errorf("submit past the desk: %v", err)
	}
	foreign := sub
	foreign.Tenant = "other"
	if _, _, err := user.SubmitSample(ctx, foreign, strings.NewReader(text)); err == nil {
		t.Errorf("submit for another tenant: %v", err)
	}

	sandbox := as(auth.Sandboxd, "")
	queue, err := sandbox.Queue(ctx, []string{"amd64"})
	must("open the queue", err)
	job, err := queue.Claim(ctx)
	must("claim", err)
	if job.Submission.ID != sub.ID {
		t.Errorf("claimed %s", job.Submission.ID)
	}
	must("expect yara", as(auth.Admin, "").SetProfile(ctx, schemas.Profile{Schema: schemas.ProfileSchema, Name: "amd64", Expected: []string{"yara"}}))
	if got, err := sandbox.Profile(ctx, "amd64"); err != nil || len(got.Expected) != 1 {
		t.Errorf("the sandbox reads who is expected: %+v, %v", got, err)
	}
	if _, err := sandbox.Definition(ctx, "yara"); !errors.Is(err, bus.ErrNotFound) {
		t.Errorf("the sandbox reads who is removed: %v", err)
	}
	w, err := sandbox.BeginContext(ctx, "acme", sub.ID)
	must("begin", err)
	var books faults.Books
	write := func(data schemas.Typed) {
		t.Helper()
		e, err := schemas.NewEvent("acme", sub.ID, w.NextID(), time.Now(), schemas.OriginHost, data)
		must("make an event", err)
		must("write an event", w.Write(ctx, e))
		books.Ack(e.ID)
	}
	write(schemas.AnalysisSubmitted{Submission: sub, Attempt: 1})
	if job.Submission.Sample.SHA256 != d {
		t.Errorf("the job's sample is %s, not %s", job.Submission.Sample.SHA256, d)
	}
	must("have the sample", sandbox.Artifacts().Keep(ctx, d))
	a := schemas.Artifact{Kind: schemas.KindSample, SHA256: d, Size: size}
	e, err := schemas.NewEvent("acme", sub.ID, a.ID(sub.ID), time.Now(), schemas.OriginHost, a)
	must("make an announcement", err)
	must("announce", sandbox.PublishArtifact(ctx, e, &a))
	books.Ack(e.ID)
	write(schemas.StartAnalysis{})
	must("finish the job", job.Done(ctx))

	task, err := yara.NextTask(ctx, "yara")
	must("take a task", err)
	if body, err := yara.Artifacts().ReadAll(ctx, d, 8<<20); err != nil || string(body) != text {
		t.Errorf("the analyzer read %d bytes: %v", len(body), err)
	}
	n := 0
	must("read the analysis", yara.Read(ctx, "acme", sub.ID, 0, func(bus.Entry) error {
		n++
		return nil
	}))
	if n != 3 {
		t.Errorf("the analyzer read %d events, not 3", n)
	}
	derived, size, err := yara.Upload(ctx, "yara", "dropped", strings.NewReader("what was in it"))
	must("upload", err)
	if _, _, err := yara.Artifacts().Put(ctx, "dropped", strings.NewReader("past the clerk")); !errors.Is(err, bus.ErrDenied) {
		t.Errorf("an analyzer wrote an artifact: %v", err)
	}
	must("hand in", yara.Finish(ctx, schemas.FinishedTask{
		Task: task.Ref, Version: "1.0.0", Instance: "i", Status: schemas.TaskDone,
		Findings: []schemas.Finding{{Kind: "x", Title: "x"}},
		Derived:  []schemas.Derived{{Kind: "dropped", SHA256: derived, Size: size}},
	}))
	must("finish the task", task.Done())

	missing, err := sandbox.Wait(ctx, "acme", sub.ID, time.Now().Add(2*time.Minute), nil)
	if err != nil || len(missing) != 0 {
		t.Fatalf("waited: missing %v, %v", missing, err)
	}
	_, err = sandbox.End(ctx, "acme", sub.ID, schemas.AnalysisCompleted{})
	must("end", err)

	reporter := as(auth.Reporter, "")
	must("open the endings", root.OpenEndings(ctx, "reporter"))
	following, done := context.WithCancel(ctx)
	defer done()
	err = reporter.Endings(following, "reporter", func(ctx context.Context, e schemas.Event) error {
		defer done()
		body, _, err := reporter.Reports().Put(ctx, "report", strings.NewReader("{}"))
		must("store a report", err)
		ev, err := schemas.NewEvent(e.Tenant, e.Analysis, e.Analysis+"/report", time.Now(), schemas.OriginHost, schemas.ReportWritten{Format: "json", SHA256: body, Size: 2})
		must("make a report's event", err)
		must("announce a report", reporter.PublishReport(ctx, ev, "json"))
		return nil
	})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("follow the endings: %v", err)
	}
	families := map[string]int{}
	must("read back", root.Read(ctx, "acme", sub.ID, 0, func(e bus.Entry) error {
		families[e.Event.Family()]++
		return nil
	}))
	if families["finding"] != 1 || families["receipt"] != 1 || families["report"] != 1 || families["artifact"] != 2 {
		t.Errorf("the log has %v", families)
	}
	faults.Account(ctx, t, root.JetStream(), "", &books)

	// An answer that comes late is noted, and one that is wrong is buried.
	late := reg
	late.Name = "late"
	must("register one that is late", root.Register(ctx, late))
	ref := task.Ref
	ref.Analyzer = "late"
	must("hand in late", root.Finish(ctx, schemas.FinishedTask{Task: ref, Version: "1.0.0", Instance: "i", Status: schemas.TaskDone, Findings: []schemas.Finding{{Kind: "x", Title: "x"}}}))
	until(t, func() bool {
		amended := false
		must("read back", root.Read(ctx, "acme", sub.ID, 0, func(e bus.Entry) error {
			amended = amended || e.Event.Name() == schemas.EventAmended
			return nil
		}))
		return amended
	})
	ref.Analyzer = "nobody"
	must("hand in as nobody", root.Finish(ctx, schemas.FinishedTask{Task: ref, Version: "1.0.0", Instance: "i", Status: schemas.TaskDone}))
	until(t, func() bool {
		buried := false
		must("list the dead letters", root.DeadLetters(ctx, func(d bus.DeadLetter) error {
			buried = buried || d.Subject == "in.nobody."+strings.TrimPrefix(d.Subject, "in.nobody.")
			return nil
		}))
		return buried
	})
	for name := range root.JetStream().StreamNames(ctx).Name() {
		st, err := clerk.JetStream().Stream(ctx, name)
		must("describe a stream", err)
		denied := false
		if err := st.Purge(ctx, jetstream.WithPurgeSubject("nothing")); err != nil {
			denied = errors.Is(err, bus.ErrDenied)
		}
		if want := !strings.HasPrefix(name, "OBJ_UP-"); denied != want {
			t.Errorf("the clerk may purge %s: %v", name, !denied)
		}
	}
	if n := uploaded(t, root, "yara"); n != 0 {
		t.Errorf("%d messages of an upload are left that the clerk has taken over", n)
	}

	must("archive", func() error {
		projecting, done := context.WithCancel(ctx)
		defer done()
		go func() { _ = root.Project(projecting, log) }()
		go func() {
			_ = reporter.Endings(projecting, "reporter", func(context.Context, schemas.Event) error { return nil })
		}()
		x := bus.NewArchiver(archiver, bus.ArchiverOptions{After: time.Nanosecond, Log: log})
		var err error
		until(t, func() bool {
			var moved int
			moved, err = x.Pass(ctx)
			return err != nil || moved == 1
		})
		return err
	}())
	n = 0
	must("read out of the archive", root.Read(ctx, "acme", sub.ID, 0, func(bus.Entry) error {
		n++
		return nil
	}))
	if _, err := root.ArchiveEntry(ctx, "acme", sub.ID); err != nil || n == 0 {
		t.Errorf("%d events are in the archive: %v", n, err)
	}
}

// until waits for what is to happen soon.
func until(t *testing.T, is func() bool) {
	t.Helper()
	for end := time.Now().Add(2 * time.Minute); !is(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("it does not happen")
		}
	}
}

// uploaded counts the messages of an analyzer's uploads.
func uploaded(t *testing.T, b *bus.Bus, analyzer string) uint64 {
	t.Helper()
	st, err := b.JetStream().Stream(t.Context(), "OBJ_UP-"+analyzer)
	if err != nil {
		t.Fatal(err)
	}
	info, err := st.Info(t.Context(), jetstream.WithSubjectFilter("$O.UP-"+analyzer+".C.>"))
	if err != nil {
		t.Fatal(err)
	}
	return uint64(len(info.State.Subjects))
}
