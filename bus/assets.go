// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// Names of streams and buckets.
const (
	streamLog   = "LOG"
	streamInbox = "INBOX"
	streamJobs  = "JOBS"
	streamDead  = "DEAD"
	streamRuns  = "RUNS"

	bucketArtifacts = "ART"
	bucketReports   = "REP"
	bucketArchive   = "ARC"
	bucketUploads   = "UP-" // and the analyzer's name

	kvRegistry = "REGISTRY"
	kvLease    = "LEASE"
	kvState    = "STATE"
	kvArchive  = "ARCHIVE"
	kvRuns     = "RUNS"
	kvMemo     = "MEMO"
	kvAttempts = "ATTEMPTS"

	kvAnalyzers = "ANALYZERS"
	kvProfiles  = "PROFILES"
)

// MaxPayload is the largest message that the server must take, in bytes: one
// frame of an artifact, incompressible, with its overhead.
const MaxPayload = 2 << 20

// MaxEvent bounds one event of the log in bytes.
const MaxEvent = 256 << 10

// Bounds of the dead letters: how many there are under one subject, of which every
// analyzer has its own, and bytes of what one keeps of its message. All of one
// analyzer's subjects together have room for much less than everything; under an
// advisory's there is room for all that its consumer can have given out.
const (
	maxLetters = 2048
	maxLetter  = 64 << 10
)

// Bounds of the inbox: how many finished tasks of an analyzer wait for the clerk,
// each of [MaxPayload] at most, and for how many analyzers there is room that have
// as many. One that floods it does not get it as full as refuses submissions.
const (
	maxAnswers  = 256
	inboxShares = 4
)

// Time that things may take on the bus.
const (
	dupWindow    = 10 * time.Minute // within which a repeated message id is dropped
	leaseTTL     = 60 * time.Second
	heartbeatTTL = 15 * time.Second
	uploadTTL    = 24 * time.Hour
	memoTTL      = 90 * 24 * time.Hour // then the work is done once more
	attemptsTTL  = 24 * time.Hour
)

// Limits size the assets when they are made; those that there are keep the size
// that they have, unless it is smaller. The zero value is for one machine.
type Limits struct {
	Replicas int   // 0: 3 on a cluster, else 1
	Log      int64 // bytes
	Store    int64 // bytes of artifacts
	Jobs     int64 // waiting submissions
}

func (l Limits) withDefaults() Limits {
	if l.Log == 0 {
		l.Log = 50 << 30
	}
	if l.Store == 0 {
		l.Store = 500 << 30
	}
	if l.Jobs == 0 {
		l.Jobs = 100_000
	}
	return l
}

// streams is the table of everything that stores messages. DiscardNew
// everywhere: history is never dropped silently, and a full queue says so.
func (l Limits) streams() []jetstream.StreamConfig {
	artifacts := objectStream(bucketArtifacts, "artifacts by the sha256 of their bytes", l.Store, 0)
	artifacts.AllowAtomicPublish = true // for small ones, see [Store.putSmall]
	return []jetstream.StreamConfig{
		{
			Name: streamLog, Description: "everything that happened, in one order",
			Subjects: []string{logPrefix + ">"}, Retention: jetstream.LimitsPolicy, Discard: jetstream.DiscardNew,
			MaxBytes: l.Log, MaxMsgSize: MaxEvent, Duplicates: dupWindow,
			AllowAtomicPublish: true, AllowDirect: true, DenyDelete: true,
			RePublish: &jetstream.RePublish{Source: logPrefix + ">", Destination: livePrefix + logPrefix + ">"},
		},
		{
			Name: streamInbox, Description: "finished tasks on their way to the clerk",
			Subjects: []string{"in.*.*"}, Retention: jetstream.WorkQueuePolicy, Discard: jetstream.DiscardNew,
			MaxBytes: max(l.Log/4, inboxShares*maxAnswers*MaxPayload), MaxMsgSize: MaxPayload, Duplicates: dupWindow, AllowAtomicPublish: true,
			// Whoever hands in too much is refused himself, before anybody else:
			// all of an analyzer's messages lie under one subject, whatever tasks
			// they name.
			SubjectTransform:  &jetstream.SubjectTransformConfig{Source: "in.*.*", Destination: "in.{{wildcard(1)}}." + waiting},
			MaxMsgsPerSubject: maxAnswers, DiscardNewPerSubject: true,
		},
		{
			Name: streamJobs, Description: "submissions that wait for a sandbox",
			Subjects: []string{"job.*.*.*"}, Retention: jetstream.WorkQueuePolicy, Discard: jetstream.DiscardNew,
			MaxMsgs: l.Jobs, MaxMsgSize: MaxPayload, Duplicates: 24 * time.Hour, AllowDirect: true,
		},
		{
			Name: streamRuns, Description: "tasks of runs that wait for their analyzers, and the runs for who drives them",
			Subjects: []string{runPrefix + ">"}, Retention: jetstream.WorkQueuePolicy, Discard: jetstream.DiscardNew,
			MaxBytes: 1 << 30, MaxMsgSize: MaxEvent, Duplicates: dupWindow, AllowDirect: true,
		},
		{
			Name: streamDead, Description: "what could not be processed",
			Subjects:  []string{"dead.*.*", "dead.*.*.*", advisoryExceeded + ">", advisoryTerminated + ">"},
			Retention: jetstream.LimitsPolicy, Discard: jetstream.DiscardOld,
			MaxBytes: 1 << 30, MaxAge: 90 * 24 * time.Hour,
			// Whoever writes too many drives out his own.
			MaxMsgsPerSubject: maxLetters, MaxMsgSize: maxLetter + 16<<10,
		},
		artifacts,
		objectStream(bucketReports, "reports by the sha256 of their bytes", l.Store/8, 0),
		objectStream(bucketArchive, "logs of archived and imported analyses by the sha256 of their files", l.Store/8, 0),
		{
			// A KV bucket, as ADR-8 lays it out, of hints: nobody waits until one of
			// them is on the disk, and none holds the disk up for what somebody does.
			Name: "KV_" + kvMemo, Description: "which task had the same work to do",
			Subjects: []string{"$KV." + kvMemo + ".>"}, Retention: jetstream.LimitsPolicy, Discard: jetstream.DiscardNew,
			MaxBytes: 256 << 20, MaxAge: memoTTL, MaxMsgsPerSubject: 1,
			AllowRollup: true, AllowDirect: true, DenyDelete: true, PersistMode: jetstream.AsyncPersistMode,
		},
	}
}

// objectStream is the stream behind an object bucket, as ADR-20 lays it out,
// so that any NATS client can read it.
// https://github.com/nats-io/nats-architecture-and-design/blob/main/adr/ADR-20.md
func objectStream(bucket, description string, maxBytes int64, age time.Duration) jetstream.StreamConfig {
	return jetstream.StreamConfig{
		Name: objectStreamName(bucket), Description: description,
		Subjects:  []string{"$O." + bucket + ".C.>", "$O." + bucket + ".M.>"},
		Retention: jetstream.LimitsPolicy, Discard: jetstream.DiscardNew, MaxBytes: maxBytes, MaxAge: age,
		AllowRollup: true, AllowDirect: true,
	}
}

func objectStreamName(bucket string) string { return "OBJ_" + bucket }

func (l Limits) buckets() []jetstream.KeyValueConfig {
	return []jetstream.KeyValueConfig{
		{Bucket: kvRegistry, Description: "heartbeats of analyzers", TTL: heartbeatTTL},
		{Bucket: kvLease, Description: "who runs an analysis", TTL: leaseTTL},
		{Bucket: kvRoom, Description: "how full the server is", TTL: roomTTL},
		{Bucket: kvState, Description: "projection of the log: one line per analysis"},
		{Bucket: kvArchive, Description: "which file of ARC has an analysis that the log has no longer"},
		{Bucket: kvAnalyzers, Description: "analyzers that are commands of the user's, and those that are removed"},
		{Bucket: kvProfiles, Description: "which analyzers the operator expects of a profile's analyses"},
		{Bucket: kvAttempts, Description: "how often tasks that were given out again have been begun", TTL: attemptsTTL, MaxBytes: 16 << 20},
		{Bucket: kvRuns, Description: "runs of analyzers over past artifacts: state and list"},
	}
}

// Reconcile makes the assets what the table says. It never shrinks or removes
// anything, and may run on every start and from several programs at once.
func (b *Bus) Reconcile(ctx context.Context, l Limits) error {
	l = l.withDefaults()
	streams := l.streams()
	replicas, err := b.ensureFirst(ctx, streams[0], l.Replicas)
	if err != nil {
		return err
	}
	for _, cfg := range streams[1:] {
		if err := withPeers(ctx, func(ctx context.Context) error { return b.ensureStream(ctx, cfg, replicas) }); err != nil {
			return err
		}
	}
	for _, cfg := range l.buckets() {
		cfg.Replicas = replicas
		cfg.Storage = jetstream.FileStorage
		if st, err := b.js.Stream(ctx, "KV_"+cfg.Bucket); err == nil {
			cfg.Replicas = max(replicas, st.CachedInfo().Config.Replicas)
		}
		err := withPeers(ctx, func(ctx context.Context) error {
			_, err := b.js.CreateOrUpdateKeyValue(ctx, cfg)
			return err
		})
		if err != nil {
			return fmt.Errorf("create bucket %s: %w", cfg.Bucket, err)
		}
	}
	return withPeers(ctx, b.openInbox)
}

// ensureFirst makes the first stream, and learns by that whether there is a
// cluster, where nobody has said how many replicas there shall be. A cluster
// that has too few servers may be starting: it is waited for, since with fewer
// replicas than its owner expects a dead server would take the log with it.
func (b *Bus) ensureFirst(ctx context.Context, cfg jetstream.StreamConfig, replicas int) (int, error) {
	if replicas == 0 {
		replicas = 1
		if b.nc.ConnectedClusterName() != "" {
			replicas = 3
		}
	}
	err := withPeers(ctx, func(ctx context.Context) error { return b.ensureStream(ctx, cfg, replicas) })
	if hasCode(err, codeNoReplicas) { // a cluster's name is all that it has
		return 1, b.ensureStream(ctx, cfg, 1)
	}
	if hasCode(err, codeNoPeers) {
		return 0, fmt.Errorf("the cluster has not the servers for %d copies of the log: start them, or say how many it shall be (petri bus run --replicas N): %w", replicas, err)
	}
	return replicas, err
}

// withPeers makes an asset of a cluster, and waits for servers that there are too
// few of: one that is slow for a moment counts as away.
func withPeers(ctx context.Context, make func(ctx context.Context) error) error {
	return retry(ctx, func(ctx context.Context) error {
		err := make(ctx)
		if hasCode(err, codeNoPeers) {
			return passing{err}
		}
		return err
	})
}

// replicas is how many the log has: what is made later has as many.
func (b *Bus) replicas(ctx context.Context) (int, error) {
	var st jetstream.Stream
	err := retry(ctx, func(ctx context.Context) (err error) {
		st, err = b.js.Stream(ctx, streamLog)
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("look at the log: %w", err)
	}
	return st.CachedInfo().Config.Replicas, nil
}

func (b *Bus) ensureStream(ctx context.Context, cfg jetstream.StreamConfig, replicas int) error {
	cfg.Replicas = replicas
	cfg.Storage = jetstream.FileStorage
	if st, err := b.js.Stream(ctx, cfg.Name); err == nil {
		have := st.CachedInfo().Config
		cfg.MaxBytes = max(cfg.MaxBytes, have.MaxBytes)
		cfg.Replicas = max(replicas, have.Replicas)
		if have.PersistMode != jetstream.AsyncPersistMode {
			cfg.PersistMode = have.PersistMode // the server changes none
		} else if cfg.Replicas > 1 { // nor copies what is written so: these are hints
			if err := b.js.DeleteStream(ctx, cfg.Name); err != nil {
				return fmt.Errorf("make stream %s anew: %w", cfg.Name, err)
			}
		}
	}
	if cfg.Replicas > 1 {
		cfg.PersistMode = jetstream.DefaultPersistMode
	}
	_, err := b.js.CreateOrUpdateStream(ctx, cfg)
	if errors.Is(err, jetstream.ErrStreamNameAlreadyInUse) { // another program was faster
		_, err = b.js.UpdateStream(ctx, cfg)
	}
	if err != nil {
		return fmt.Errorf("create stream %s: %w", cfg.Name, err)
	}
	return nil
}
