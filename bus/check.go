// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/petri-sandbox/petri/schemas"
)

const (
	maxResult = 1 << 30 // bytes of a result document
	maxCut    = 1 << 40 // what an analyzer may say that it left out
)

// errRefused says that a finished task is wrong in itself: trying again gives
// the same.
type errRefused struct{ error }

func refuse(format string, args ...any) error { return errRefused{fmt.Errorf(format, args...)} }

// readFinished reads what was handed in. If that names its task, but is wrong
// otherwise, the error is an [errRefused] and the task is returned.
func readFinished(m jetstream.Msg) (schemas.FinishedTask, time.Time, error) {
	var f schemas.FinishedTask
	e, err := schemas.ParseEvent(m.Data())
	if err == nil && e.Type != f.EventType() {
		err = fmt.Errorf("it is a %.80q, not a %s", e.Type, f.EventType())
	}
	if err != nil {
		return f, time.Time{}, err
	}
	wrong := schemas.Decode(e.Data, &f, true)
	if wrong != nil { // only then it is looked at more closely
		var named struct {
			Task schemas.TaskRef `json:"task"`
		}
		if err := schemas.Decode(e.Data, &named, false); err != nil {
			return f, time.Time{}, err
		}
		f, wrong = schemas.FinishedTask{Task: named.Task}, errRefused{whatIsWrong(e.Data, wrong)}
	}
	t := f.Task
	if err := checkTokens(t.Tenant, t.Analysis); err != nil {
		return f, time.Time{}, err
	}
	if err := schemas.CheckAnalyzer(t.Analyzer); err != nil {
		return f, time.Time{}, err
	}
	if err := schemas.CheckRun(t.Run); err != nil {
		return f, time.Time{}, err
	}
	if t.SHA256 != nil {
		if err := schemas.CheckKind(t.Kind); err != nil {
			return f, time.Time{}, err
		}
	}
	// The subject is what the server lets the analyzer write to; the body is
	// only its word.
	if inboxAnalyzer(m.Subject()) != t.Analyzer {
		return f, time.Time{}, fmt.Errorf("task of %s handed in under %s", t.Analyzer, m.Subject())
	}
	return f, e.Time, wrong
}

// whatIsWrong names the field of a finished task that is wrong, and of a list its
// place, where the error that decoding it gave does not.
func whatIsWrong(data []byte, err error) error {
	var lists struct {
		Findings json.RawMessage `json:"findings"`
		Derived  json.RawMessage `json:"derived"`
	}
	if json.Unmarshal(data, &lists) != nil {
		return err
	}
	if err := inList("finding", lists.Findings, new(schemas.Finding)); err != nil {
		return err
	}
	if err := inList("derived artifact", lists.Derived, new(schemas.Derived)); err != nil {
		return err
	}
	return err
}

func inList(what string, text json.RawMessage, into any) error {
	var list []json.RawMessage
	if len(text) > 0 && json.Unmarshal(text, &list) != nil {
		return fmt.Errorf("%ss: that is no JSON list", what)
	}
	for i, text := range list {
		if err := schemas.Decode(text, into, true); err != nil {
			return fmt.Errorf("%s %d: %w", what, i, err)
		}
	}
	return nil
}

// open checks that the task exists: the log has announced its artifact, or
// started its analysis, and the analyzer is registered. It returns the
// artifact.
func (c *Clerk) open(ctx context.Context, t schemas.TaskRef) (*schemas.Artifact, error) {
	if err := c.registered(ctx, t); err != nil {
		return nil, err
	}
	if t.Run != schemas.LiveRun {
		return c.b.listed(ctx, t)
	}
	if t.SHA256 == nil {
		_, err := c.ledger.anyMsg(ctx, contextSubject(t.Tenant, t.Analysis, schemas.EventStartAnalysis))
		if errors.Is(err, ErrNotFound) {
			start := contextSubject(t.Tenant, t.Analysis, schemas.EventStartAnalysis)
			if there, err := c.ledger.archivedHas(ctx, t.Tenant, t.Analysis, start); there || err != nil {
				return nil, errors.Join(err, c.unanswered(ctx, t))
			}
			return nil, c.gone(ctx, t, refuse("analysis %s has not come to its analyzers", t.Analysis))
		}
		return nil, err
	}
	m, err := c.ledger.anyMsg(ctx, artifactsOf(t.Tenant, t.Analysis, string(t.Kind), *t.SHA256)+".*")
	if errors.Is(err, ErrNotFound) {
		a, err := c.ledger.archivedArtifact(ctx, t.Tenant, t.Analysis, t.Kind, *t.SHA256)
		if errors.Is(err, ErrNotFound) {
			return nil, c.gone(ctx, t, refuse("analysis %s has announced no %s %s", t.Analysis, t.Kind, t.SHA256))
		}
		if err == nil {
			err = c.unanswered(ctx, t)
		}
		return a, err
	}
	if err != nil {
		return nil, err
	}
	a := new(schemas.Artifact)
	e, err := schemas.ParseEvent(m.Data)
	if err == nil {
		err = e.Decode(a)
	}
	if err == nil && a.Occurrence > 0 { // the first may be in the archive, with its receipt
		err = c.unanswered(ctx, t)
	}
	return a, err
}

// gone returns a [DeletedError] if there is no such task because its analysis was
// deleted, and why otherwise.
func (c *Clerk) gone(ctx context.Context, t schemas.TaskRef, why error) error {
	dead, err := c.ledger.tombstone(ctx, t.Tenant, t.Analysis)
	if err != nil {
		return err
	}
	if dead != nil {
		return dead
	}
	return why
}

// registered checks that the log has heard of an analyzer, and that it has such
// tasks: nobody answers for another. One that has withdrawn since may still hand
// in what it began.
func (c *Clerk) registered(ctx context.Context, t schemas.TaskRef) error {
	kind := t.Kind
	if t.SHA256 == nil {
		kind = ""
	}
	if r, ok := c.known.Load(t.Analyzer); ok && wants(r.(schemas.Registration), kind) {
		return nil
	}
	m, err := c.ledger.lastMsg(ctx, registry+t.Analyzer)
	if errors.Is(err, ErrNotFound) {
		return refuse("analyzer %s is not registered", t.Analyzer)
	}
	if err != nil {
		return err
	}
	var r schemas.Registration
	e, err := schemas.ParseEvent(m.Data)
	if err == nil {
		err = e.Decode(&r)
	}
	if err != nil {
		return fmt.Errorf("read the registration of %s: %w", t.Analyzer, err)
	}
	c.known.Store(t.Analyzer, r)
	if !wants(r, kind) {
		if kind == "" {
			return refuse("analyzer %s has registered for no analyses", t.Analyzer)
		}
		return refuse("analyzer %s has not registered for artifacts of kind %s", t.Analyzer, kind)
	}
	return nil
}

// errAnswered says that the archive has a task's receipt.
var errAnswered = errors.New("the task has its receipt")

// unanswered returns errAnswered if the archive has the receipt of a task. The
// log's own guard against a second one does not know of it.
func (c *Clerk) unanswered(ctx context.Context, t schemas.TaskRef) error {
	there, err := c.ledger.archivedHas(ctx, t.Tenant, t.Analysis, receiptSubject(t))
	if there {
		return errAnswered
	}
	return err
}

// checkFinished checks form and limits, and names what is wrong.
func checkFinished(f *schemas.FinishedTask) error {
	switch f.Status {
	case schemas.TaskDone, schemas.TaskFailed, schemas.TaskSkipped:
	default:
		return refuse("status %.40q is none of done, failed, skipped", f.Status)
	}
	if len(f.Findings) > schemas.MaxFindings {
		return refuse("%d findings; %d are allowed", len(f.Findings), schemas.MaxFindings)
	}
	if len(f.Derived) > schemas.MaxDerived {
		return refuse("%d derived artifacts; %d are allowed", len(f.Derived), schemas.MaxDerived)
	}
	for i := range f.Findings {
		if err := f.Findings[i].Check(); err != nil {
			return refuse("finding %d: %w", i, err)
		}
		if len(f.Findings[i].Data) > 0 && !json.Valid(f.Findings[i].Data) {
			return refuse("finding %d: data is not JSON", i)
		}
	}
	for i, d := range f.Derived {
		if err := schemas.CheckKind(d.Kind); err != nil {
			return refuse("derived artifact %d: %w", i, err)
		}
		if len(d.Name) > 4096 || len(d.MediaType) > 128 {
			return refuse("derived artifact %d: name or media type is too long", i)
		}
		if d.Size < 0 {
			return refuse("derived artifact %d: size %d is negative", i, d.Size)
		}
	}
	if r := f.Result; r != nil && (!strings.HasPrefix(r.Schema, "petri.result.") || len(r.Schema) > 128) {
		return refuse("result: schema %.80q does not begin with petri.result.", r.Schema)
	}
	if c := f.Cut; c != nil && (min(c.Findings, c.Derived) < 0 || max(c.Findings, c.Derived) > maxCut) {
		return refuse("cut: a number is negative or too large")
	}
	if len(f.Version) > 64 || len(f.Instance) > 128 {
		return refuse("version or instance is too long")
	}
	f.Error = oneLine(f.Error)
	return nil
}

// adopted reports whether the artifact store has bytes, and keeps them.
func (c *Clerk) adopted(ctx context.Context, kind schemas.Kind, d schemas.Digest, size int64) (bool, error) {
	art := c.b.Artifacts()
	o, err := art.Stat(ctx, d)
	if errors.Is(err, ErrNotFound) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if o.Size != size {
		return false, refuse("%s %s has %d bytes, not %d", kind, d, o.Size, size)
	}
	err = art.touch(ctx, o)
	if errors.Is(err, ErrNotFound) { // it was collected meanwhile
		return false, nil
	}
	return err == nil, err
}

// unlessAdopted returns why, unless the artifact store has the bytes by now:
// another task with the same ones took the upload away while it was read.
func (c *Clerk) unlessAdopted(ctx context.Context, kind schemas.Kind, d schemas.Digest, size int64, why error) error {
	there, err := c.adopted(ctx, kind, d, size)
	if there || err != nil {
		return err
	}
	return why
}

// adopt brings uploaded bytes into the artifact store, which verifies them.
func (c *Clerk) adopt(ctx context.Context, analyzer string, kind schemas.Kind, d schemas.Digest, size, limit int64) error {
	if there, err := c.adopted(ctx, kind, d, size); there || err != nil {
		return err
	}
	r, o, err := c.b.uploads(analyzer).Open(ctx, d)
	if errors.Is(err, ErrNotFound) {
		return c.unlessAdopted(ctx, kind, d, size, refuse("%s %s was not uploaded", kind, d))
	}
	if err != nil {
		return err
	}
	defer r.Close()
	if o.Size != size || size > limit {
		return refuse("%s %s has %d bytes; %d were stated and %d are allowed", kind, d, o.Size, size, limit)
	}
	got, _, err := c.b.Artifacts().Put(ctx, kind, io.LimitReader(r, limit+1))
	if errors.Is(err, ErrCorrupt) || err == nil && got != d {
		return c.unlessAdopted(ctx, kind, d, size, refuse("%s %s: the uploaded bytes have another digest", kind, d))
	}
	if err == nil {
		c.b.uploads(analyzer).discard(o.meta.NUID)
	}
	return err
}
