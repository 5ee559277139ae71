// SPDX-License-Identifier: Apache-2.0

package auth_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/petri-sandbox/petri/bus"
	"github.com/petri-sandbox/petri/bus/auth"
	"github.com/petri-sandbox/petri/schemas"
)

// TestDesk has two tenants' users do what they may, each with credentials that
// allow it nothing but to ask the desk, and neither what is the other's.
func TestDesk(t *testing.T) { both(t, deskOn) }

func deskOn(t *testing.T, dir, url string) {
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Second)
	defer cancel()
	as := func(user string) *bus.Bus {
		b, err := bus.Connect(ctx, address(dir, url, user), user)
		if err != nil {
			t.Fatalf("connect as %s: %v", user, err)
		}
		t.Cleanup(b.Close)
		return b
	}
	must := func(what string, err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
	root := as("bus")
	must("make the streams", root.Reconcile(ctx, bus.Limits{Log: 64 << 20, Store: 256 << 20}))
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	serving, stop := context.WithCancel(context.Background())
	desk, closed := bus.NewDesk(root, log), make(chan error, 1)
	go func() { closed <- desk.Run(serving) }()
	defer func() {
		stop()
		<-closed
	}()
	acme, other := as("user-acme"), as("user-other")
	if acme.Tenant() != "acme" {
		t.Errorf("the tenant is %s", acme.Tenant())
	}

	// Three frames that do not compress, so that they come in several chunks.
	sample := make([]byte, 3<<20-17)
	random := rand.NewChaCha8([32]byte{1})
	_, _ = random.Read(sample)
	sub := schemas.Submission{ID: schemas.NewID(time.Now()), Tenant: "acme", Profile: "amd64", Submitted: time.Now(), Sample: schemas.Sample{Name: "s", Size: int64(len(sample))}}
	d, n, err := acme.SubmitSample(ctx, sub, bytes.NewReader(sample))
	must("submit", err)
	if d != schemas.Sum(sample) || n != int64(len(sample)) {
		t.Errorf("submitted %s, %d bytes", d, n)
	}
	list, err := acme.List(ctx, "acme", 0)
	must("list", err)
	if len(list) != 1 || list[0].Analysis != sub.ID || list[0].Status != "queued" || list[0].Sample.SHA256 != d {
		t.Errorf("the list is %+v", list)
	}
	if list, err := other.List(ctx, "other", 0); err != nil || len(list) != 0 {
		t.Errorf("another tenant's list is %+v, %v", list, err)
	}
	short := sub
	short.ID, short.Sample.Size = schemas.NewID(time.Now()), 3
	if _, n, err := acme.SubmitSample(ctx, short, bytes.NewReader([]byte("more than three"))); err == nil && n == 3 {
		t.Error("a sample that grew was taken")
	}
	huge := short
	huge.Sample.Size = bus.DeskSample + 1
	if _, _, err := acme.SubmitSample(ctx, huge, bytes.NewReader(nil)); !errors.Is(err, bus.ErrTooLarge) {
		t.Errorf("a sample that is too large: %v", err)
	}

	// What the sandbox, an analyzer and the reporter would write.
	write := func(tenant, id string, more ...schemas.Typed) {
		t.Helper()
		w, err := root.OpenContext(ctx, tenant, id)
		must("open", err)
		for _, data := range more {
			e, err := schemas.NewEvent(tenant, id, w.NextID(), time.Now(), schemas.OriginHost, data)
			must("make an event", err)
			must("write an event", w.Write(ctx, e))
		}
	}
	announce := func(tenant, id string, a schemas.Artifact) {
		t.Helper()
		e, err := schemas.NewEvent(tenant, id, a.ID(id), time.Now(), schemas.OriginHost, a)
		must("make an announcement", err)
		must("announce", root.PublishArtifact(ctx, e, &a))
	}
	sub.Sample.SHA256 = d
	write("acme", sub.ID, schemas.AnalysisSubmitted{Submission: sub, Attempt: 1})
	announce("acme", sub.ID, schemas.Artifact{Kind: schemas.KindSample, SHA256: d, Size: n})
	report := []byte(`{"the":"report"}`)
	rd, rn, err := root.Reports().PutBytes(ctx, "report", report)
	must("store a report", err)
	e, err := schemas.NewEvent("acme", sub.ID, sub.ID+"/report", time.Now(), schemas.OriginHost, schemas.ReportWritten{Format: "json", SHA256: rd, Size: rn})
	must("make a report's event", err)
	must("announce a report", root.PublishReport(ctx, e, "json"))

	read := func(b *bus.Bus, st *bus.Store, d schemas.Digest) ([]byte, error) {
		r, _, err := st.Open(ctx, d)
		if err != nil {
			return nil, err
		}
		defer r.Close()
		return io.ReadAll(r)
	}
	got, err := read(acme, acme.Artifacts().For(sub.ID), d)
	if err != nil || !bytes.Equal(got, sample) {
		t.Errorf("the sample came back as %d bytes: %v", len(got), err)
	}
	got, err = read(acme, acme.Reports().For(sub.ID), rd)
	if err != nil || !bytes.Equal(got, report) {
		t.Errorf("the report came back as %q: %v", got, err)
	}
	events := func(b *bus.Bus, tenant string) (names []string, err error) {
		err = b.Read(ctx, tenant, sub.ID, 0, func(e bus.Entry) error {
			names = append(names, e.Event.Family())
			return nil
		})
		return names, err
	}
	want := []string{"context", "artifact", "report"}
	if names, err := events(acme, "acme"); err != nil || !slices.Equal(names, want) {
		t.Errorf("the log has %v, %v", names, err)
	}
	found, err := acme.FindArtifacts(ctx, "acme", d.String()[:8])
	if err != nil || !slices.Equal(found, []bus.Found{{SHA256: d, Analysis: sub.ID}}) {
		t.Errorf("found %v, %v", found, err)
	}

	// The other tenant knows everything but the bytes.
	mine := schemas.NewID(time.Now())
	write("other", mine, schemas.StartAnalysis{})
	for what, id := range map[string]string{"its own analysis": mine, "the owner's analysis": sub.ID} {
		if got, err := read(other, other.Artifacts().For(id), d); !errors.Is(err, bus.ErrNotFound) {
			t.Errorf("by way of %s another tenant got %d bytes: %v", what, len(got), err)
		}
	}
	if _, err := read(other, other.Artifacts(), d); !errors.Is(err, bus.ErrDenied) {
		t.Errorf("without an analysis: %v", err)
	}
	if names, err := events(other, "acme"); err == nil {
		t.Errorf("another tenant read %v", names)
	}
	if names, err := events(other, "other"); err != nil || len(names) != 0 {
		t.Errorf("under its own name another tenant read %v, %v", names, err)
	}
	claim := schemas.Submission{ID: schemas.NewID(time.Now()), Tenant: "other", Profile: "amd64", Submitted: time.Now(), Sample: schemas.Sample{SHA256: d, Size: n}}
	if err := other.Submit(ctx, claim); !errors.Is(err, bus.ErrDenied) {
		t.Errorf("another tenant queued a sample that it only names: %v", err)
	}
	lie := bytes.Repeat([]byte("x"), int(n))
	if ld, _, err := other.SubmitSample(ctx, claim, bytes.NewReader(lie)); err != nil || ld == d {
		t.Errorf("bytes of its own: %s, %v", ld, err)
	}

	// Once it is in the archive nothing changes.
	write("acme", sub.ID, schemas.AnalysisCompleted{})
	x := bus.NewArchiver(root, bus.ArchiverOptions{Log: log})
	must("archive", x.Archive(ctx, "acme", sub.ID))
	if names, err := events(acme, "acme"); err != nil || !slices.Equal(names, append(want, "context")) {
		t.Errorf("the archive has %v, %v", names, err)
	}
	got, err = read(acme, acme.Artifacts().For(sub.ID), d)
	if err != nil || !bytes.Equal(got, sample) {
		t.Errorf("from the archive the sample came back as %d bytes: %v", len(got), err)
	}

	// Cancelled by its tenant, and by nobody else.
	queued, err := other.List(ctx, "other", 0)
	must("list", err)
	if !slices.ContainsFunc(queued, func(s bus.Summary) bool { return s.Analysis == claim.ID && s.Status == "queued" }) {
		t.Errorf("another tenant's list is %+v", queued)
	}
	if err := acme.Cancel(ctx, "other", claim.ID, "x"); !errors.Is(err, bus.ErrDenied) {
		t.Errorf("cancel another's: %v", err)
	}
	must("cancel", other.Cancel(ctx, "other", claim.ID, "x"))
	seen := 0
	must("watch", other.Watch(ctx, "other", claim.ID, bus.Feed{Event: func(schemas.Event) error { seen++; return nil }}))
	if seen == 0 {
		t.Error("a cancelled analysis has no events")
	}
	if c := desk.Counts(); c.Taken != c.Done+c.Refused+c.Busy+c.Failed || c.Done == 0 || c.Refused == 0 || c.Failed != 0 {
		t.Errorf("the counts are %+v", c)
	}
	if p, err := auth.PermissionsOf(auth.User, "acme"); err != nil || slices.ContainsFunc(p.Publish, func(s string) bool { return bytes.HasPrefix([]byte(s), []byte("job.")) }) {
		t.Errorf("a user may publish %v, %v", p.Publish, err)
	}
}
