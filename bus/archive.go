// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/petri-sandbox/petri/bus/petrifile"
	"github.com/petri-sandbox/petri/schemas"
)

// The archive has what the log has no longer, or never had: a thin .petri file
// per analysis in the bucket ARC, and an entry in ARCHIVE that names it. The
// entry decides: a file that none names is garbage.

// archive is the store of the files.
func (b *Bus) archive() *Store {
	return &Store{b: b, bucket: bucketArchive, caps: Caps{kindPetri: maxArchived}}
}

const (
	kindPetri   schemas.Kind = "petri"
	maxArchived              = 64 << 30 // bytes of a thin file
)

// archived is an analysis' entry as it is in the archive now.
type archived struct {
	schemas.ArchiveEntry
	revision uint64    // 0: there is none
	written  time.Time // by the server's clock
}

func archiveKey(tenant, analysis string) string { return tenant + "." + analysis }

// archived looks an analysis up. Without an entry the revision is 0; the leader
// is asked, since what a replica does not know yet would be read from nowhere.
func (b *Bus) archived(ctx context.Context, tenant, analysis string) (archived, error) {
	m, err := b.lookupIn(ctx, "KV_"+kvArchive, lookup{Last: "$KV." + kvArchive + "." + archiveKey(tenant, analysis)})
	if errors.Is(err, ErrNotFound) {
		return archived{}, nil
	}
	if err != nil {
		return archived{}, fmt.Errorf("look into the archive: %w", err)
	}
	if len(m.Data) == 0 { // the mark of a deletion
		return archived{}, nil
	}
	a := archived{revision: m.Sequence, written: m.Time}
	if err := json.Unmarshal(m.Data, &a.ArchiveEntry); err != nil {
		return archived{}, fmt.Errorf("look into the archive: the entry of %s: %w", analysis, err)
	}
	return a, nil
}

// errEntryMoved says that somebody else has changed an entry meanwhile.
var errEntryMoved = errors.New("the archive has another entry meanwhile")

// putEntry writes an entry in the place of what was at that revision; 0 is
// nothing. A deleted entry counts as something: see [archived.revision].
func (b *Bus) putEntry(ctx context.Context, e schemas.ArchiveEntry, revision uint64) error {
	body, err := json.Marshal(e)
	if err != nil {
		return err
	}
	kv, err := b.js.KeyValue(ctx, kvArchive)
	if err != nil {
		return fmt.Errorf("open the archive: %w", err)
	}
	key := archiveKey(e.Tenant, e.Analysis)
	err = retry(ctx, func(ctx context.Context) error {
		if revision == 0 {
			_, err := kv.Create(ctx, key, body)
			return err
		}
		_, err := kv.Update(ctx, key, body, revision)
		return err
	})
	if errors.Is(err, jetstream.ErrKeyExists) || hasCode(err, codeWrongLastSequence) {
		// The acknowledgement of an earlier try may have been lost.
		if have, herr := b.archived(ctx, e.Tenant, e.Analysis); herr == nil && have.revision > revision && have.File == e.File && have.Last == e.Last {
			return nil
		}
		return errEntryMoved
	}
	if err != nil {
		return fmt.Errorf("write the archive's entry of %s: %w", e.Analysis, err)
	}
	return nil
}

// ArchiveEntry returns where the archive has an analysis, or an error that wraps
// [ErrNotFound].
func (b *Bus) ArchiveEntry(ctx context.Context, tenant, analysis string) (schemas.ArchiveEntry, error) {
	if err := checkTokens(tenant, analysis); err != nil {
		return schemas.ArchiveEntry{}, err
	}
	a, err := b.archived(ctx, tenant, analysis)
	if err == nil && a.revision == 0 {
		err = fmt.Errorf("archive entry of %s: %w", analysis, ErrNotFound)
	}
	return a.ArchiveEntry, err
}

// ArchiveEntries calls fn with the entry of every archived and imported
// analysis of a tenant, in no order. Each lists the analysis' artifacts. Tenant
// "*" stands for all. Whoever wants all analyses looks into the log first and
// here second: one that is moved meanwhile is then seen twice, and not never.
func (b *Bus) ArchiveEntries(ctx context.Context, tenant string, fn func(schemas.ArchiveEntry) error) error {
	if tenant != "*" {
		if err := schemas.CheckTenant(tenant); err != nil {
			return err
		}
	}
	kv, err := b.js.KeyValue(ctx, kvArchive)
	if errors.Is(err, jetstream.ErrBucketNotFound) { // an older Petri's data
		return nil
	}
	if err != nil {
		return fmt.Errorf("open the archive: %w", err)
	}
	w, err := kv.Watch(ctx, tenant+".*", jetstream.IgnoreDeletes())
	if err != nil {
		return fmt.Errorf("list the archive: %w", err)
	}
	defer func() { _ = w.Stop() }()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case v, ok := <-w.Updates():
			if !ok {
				return fmt.Errorf("list the archive: %w", nats.ErrConnectionClosed)
			}
			if v == nil { // that is all that there is now
				return nil
			}
			var e schemas.ArchiveEntry
			if err := json.Unmarshal(v.Value(), &e); err != nil {
				return fmt.Errorf("list the archive: the entry %s: %w", v.Key(), err)
			}
			if err := fn(e); err != nil {
				if errors.Is(err, ErrStop) {
					return nil
				}
				return err
			}
		}
	}
}

// ArchivedArtifacts calls fn with every announcement of an archived or imported
// analysis, as it was made. It reads the file; the entry's own list will often
// do.
func (b *Bus) ArchivedArtifacts(ctx context.Context, e schemas.ArchiveEntry, fn func(schemas.Artifact) error) error {
	err := b.archivedEvents(ctx, e, func(en Entry) error {
		if en.Event.Family() != "artifact" {
			return nil
		}
		var a schemas.Artifact
		if err := en.Event.Decode(&a); err != nil {
			return err
		}
		return fn(a)
	})
	if errors.Is(err, ErrStop) {
		return nil
	}
	return err
}

// archivedEvents gives fn the events of an archived analysis, and reads the
// file to its end.
func (b *Bus) archivedEvents(ctx context.Context, e schemas.ArchiveEntry, fn func(Entry) error) error {
	r, _, err := b.archive().For(e.Analysis).Open(ctx, e.File)
	if err != nil {
		return fmt.Errorf("archive of %s: %w", e.Analysis, err)
	}
	defer r.Close()
	var stop error // fn's own, which is not the file's fault
	err = petrifile.Events(r, func(en petrifile.Entry, ev schemas.Event) error {
		stop = fn(Entry{Seq: en.Seq, Subject: en.Subject, Event: ev, Body: en.Body, Archived: true})
		return stop
	})
	if stop != nil {
		return stop
	}
	if err != nil {
		return fmt.Errorf("archive of %s: %w", e.Analysis, err)
	}
	_, err = io.Copy(io.Discard, r) // to where the store compares the digest
	return err
}

// index makes the list of artifacts of an entry.
type index struct {
	list    []schemas.ArchivedArtifact
	at      map[string]int
	more    map[string]bool
	derived int
}

func newIndex() *index { return &index{at: map[string]int{}, more: map[string]bool{}} }

func (x *index) add(e schemas.Event) error {
	switch e.Family() {
	case "artifact":
	case "derivation": // it is no announcement
		x.derived++
		return nil
	default:
		return nil
	}
	var a schemas.Artifact
	if err := e.Decode(&a); err != nil {
		return err
	}
	key := string(a.Kind) + "." + a.SHA256.Token()
	if i, ok := x.at[key]; ok {
		x.list[i].Occurrences++
		return nil
	}
	if len(x.list) >= schemas.MaxArchivedArtifacts {
		x.more[key] = true
		return nil
	}
	x.at[key] = len(x.list)
	x.list = append(x.list, schemas.ArchivedArtifact{Kind: a.Kind, SHA256: a.SHA256, Size: a.Size, Occurrences: 1, Depth: a.Depth})
	return nil
}

// entry makes an archive entry of a thin file that has been written.
func (x *index) entry(h petrifile.Header, t petrifile.Trailer, file schemas.Digest, size int64) schemas.ArchiveEntry {
	e := schemas.ArchiveEntry{
		Tenant: h.Tenant, Analysis: h.Analysis, File: file, Size: size,
		Events: t.Events, Context: t.Context, Foreign: t.Foreign, Root: t.Root, Artifacts: x.list, More: len(x.more), Derived: x.derived,
	}
	if e.Artifacts == nil {
		e.Artifacts = []schemas.ArchivedArtifact{}
	}
	return e
}

// archivedArtifact looks an artifact up that the log has no announcement of:
// in the archive. If there is none the error wraps [ErrNotFound].
func (b *Bus) archivedArtifact(ctx context.Context, tenant, analysis string, kind schemas.Kind, d schemas.Digest) (*schemas.Artifact, error) {
	a, err := b.archived(ctx, tenant, analysis)
	if err != nil {
		return nil, err
	}
	none := fmt.Errorf("%s %s of %s: %w", kind, d, analysis, ErrNotFound)
	if a.revision == 0 {
		return nil, none
	}
	for _, l := range a.Artifacts {
		if l.Kind == kind && l.SHA256 == d {
			return &schemas.Artifact{Kind: kind, SHA256: d, Size: l.Size, Depth: l.Depth}, nil
		}
	}
	if a.More == 0 {
		return nil, none
	}
	var found *schemas.Artifact
	err = b.ArchivedArtifacts(ctx, a.ArchiveEntry, func(x schemas.Artifact) error {
		if x.Kind == kind && x.SHA256 == d {
			found = &x
			return ErrStop
		}
		return nil
	})
	if err == nil && found == nil {
		err = none
	}
	return found, err
}

// archivedHas reports whether the archive has an event under a subject of an
// analysis.
func (b *Bus) archivedHas(ctx context.Context, tenant, analysis, subject string) (bool, error) {
	a, err := b.archived(ctx, tenant, analysis)
	if err != nil || a.revision == 0 {
		return false, err
	}
	err = b.archivedEvents(ctx, a.ArchiveEntry, func(e Entry) error {
		if e.Subject == subject {
			return ErrStop
		}
		return nil
	})
	if errors.Is(err, ErrStop) {
		return true, nil
	}
	return false, err
}

// archivedOccurrences is how many announcements the archive has under a subject
// without its last token.
func (b *Bus) archivedOccurrences(ctx context.Context, subject string) (int, error) {
	tenant, analysis, _, _, ok := analysisOf(subject)
	if !ok {
		return 0, nil
	}
	a, err := b.archived(ctx, tenant, analysis)
	if err != nil || a.revision == 0 {
		return 0, err
	}
	n := 0
	for _, l := range a.Artifacts {
		if artifactsOf(tenant, analysis, string(l.Kind), l.SHA256) == subject {
			return l.Occurrences, nil
		}
	}
	if a.More == 0 {
		return 0, nil
	}
	err = b.ArchivedArtifacts(ctx, a.ArchiveEntry, func(x schemas.Artifact) error {
		if artifactsOf(tenant, analysis, string(x.Kind), x.SHA256) == subject {
			n++
		}
		return nil
	})
	return n, err
}
