// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/petri-sandbox/petri/schemas"
)

// Register writes into the log that an analyzer is interested from here on,
// and makes the consumer that begins right behind: who owes an answer for an
// artifact is decided by the log's order and nothing else. An analyzer that is
// registered already with the same words goes on where it stood.
func (b *Bus) Register(ctx context.Context, r schemas.Registration) error {
	if err := r.Check(); err != nil {
		return fmt.Errorf("register %s: %w", r.Name, err)
	}
	replicas, err := b.replicas(ctx)
	if err != nil {
		return fmt.Errorf("register %s: %w", r.Name, err)
	}
	if err := b.ensureStream(ctx, objectStream(bucketUploads+r.Name, "what "+r.Name+" has handed in and the clerk not yet verified", 8<<30, uploadTTL), replicas); err != nil {
		return err
	}
	seq, same, err := b.registered(ctx, r)
	if err != nil {
		return err
	}
	if !same {
		now := time.Now()
		e, err := schemas.NewEvent("_registry", "", r.Name+"/"+schemas.NewID(now), now, schemas.OriginHost, r)
		if err != nil {
			return err
		}
		if seq, err = b.publish(ctx, registry+r.Name, e); err != nil {
			return err
		}
	}
	cfg := liveConsumer(r, seq)
	_, err = b.js.CreateConsumer(ctx, streamLog, cfg)
	if errors.Is(err, jetstream.ErrConsumerExists) {
		// The start of a consumer cannot be changed; what it filters can.
		var have jetstream.Consumer
		if have, err = b.js.Consumer(ctx, streamLog, cfg.Durable); err == nil {
			cfg.OptStartSeq = have.CachedInfo().Config.OptStartSeq
			_, err = b.js.UpdateConsumer(ctx, streamLog, cfg)
		}
	}
	if err != nil {
		return fmt.Errorf("make the consumer of %s: %w", r.Name, err)
	}
	return nil
}

// registered returns where an analyzer's last registration lies, and whether
// it says the same.
func (b *Bus) registered(ctx context.Context, r schemas.Registration) (seq uint64, same bool, err error) {
	m, err := b.lastMsg(ctx, registry+r.Name)
	if errors.Is(err, ErrNotFound) {
		return 0, false, nil
	}
	if err != nil {
		return 0, false, err
	}
	gone, err := b.lastMsg(ctx, unregistry+r.Name)
	if err == nil && gone.Sequence > m.Sequence {
		return 0, false, nil
	}
	if err != nil && !errors.Is(err, ErrNotFound) {
		return 0, false, err
	}
	var have schemas.Registration
	e, err := schemas.ParseEvent(m.Data)
	if err == nil {
		err = e.Decode(&have)
	}
	if err != nil {
		return 0, false, nil // what cannot be read is written anew
	}
	was, _ := json.Marshal(have)
	is, _ := json.Marshal(r)
	return m.Sequence, string(was) == string(is), nil
}

func liveConsumerName(analyzer string) string { return "az-" + analyzer + "-" + schemas.LiveRun }

// TaskAckWait is how long a task may be without a sign of life before it is
// given out again.
const TaskAckWait = 10 * time.Second

// taskMaxDeliver is more than any runner tries: it is the runner that declares
// a task poison, by handing it in as failed.
const taskMaxDeliver = 8

func liveConsumer(r schemas.Registration, seq uint64) jetstream.ConsumerConfig {
	cfg := jetstream.ConsumerConfig{
		Durable: liveConsumerName(r.Name), DeliverPolicy: jetstream.DeliverByStartSequencePolicy, OptStartSeq: seq + 1,
		AckPolicy: jetstream.AckExplicitPolicy, AckWait: TaskAckWait, MaxDeliver: taskMaxDeliver, MaxAckPending: 1000,
	}
	if r.Scope == schemas.ScopeAnalysis {
		cfg.FilterSubjects = []string{contextSubject("*", "*", schemas.EventStartAnalysis)}
		return cfg
	}
	for _, k := range r.Kinds {
		cfg.FilterSubjects = append(cfg.FilterSubjects, logPrefix+"*.*.artifact."+string(k)+".>")
	}
	return cfg
}

// interest is what the log says about who is registered.
type interest struct {
	regs  map[string]schemas.Registration
	known map[string]schemas.Registration // also of those that have withdrawn
}

func newInterest() interest {
	return interest{regs: map[string]schemas.Registration{}, known: map[string]schemas.Registration{}}
}

// apply takes a registry entry and reports whether it was one.
func (i *interest) apply(e Entry) bool {
	switch e.Event.Type {
	case schemas.Registration{}.EventType():
		var r schemas.Registration
		if e.Event.Decode(&r) == nil && r.Check() == nil {
			i.regs[r.Name], i.known[r.Name] = r, r
		}
		return true
	case schemas.Unregistration{}.EventType():
		var u schemas.Unregistration
		if e.Event.Decode(&u) == nil {
			delete(i.regs, u.Name)
		}
		return true
	}
	return false
}

// matches lists who owes an answer for an artifact of that kind, or, for the
// empty kind, for the analysis as a whole.
func (i *interest) matches(kind schemas.Kind) []string {
	var out []string
	for name, r := range i.regs {
		if wants(r, kind) {
			out = append(out, name)
		}
	}
	return out
}

// wants reports whether a registration is for a kind, or for the analysis as a
// whole if that is empty.
func wants(r schemas.Registration, kind schemas.Kind) bool {
	if kind == "" {
		return r.Scope == schemas.ScopeAnalysis
	}
	return slices.Contains(r.Kinds, kind)
}

// Heartbeat says that an instance of an analyzer lives, until ctx is done.
func (b *Bus) Heartbeat(ctx context.Context, analyzer, instance, version string) {
	t := time.NewTicker(heartbeatTTL / 3)
	defer t.Stop()
	body, _ := json.Marshal(map[string]string{"analyzer": analyzer, "instance": instance, "version": version})
	for {
		if kv, err := b.js.KeyValue(ctx, kvRegistry); err == nil {
			_, _ = kv.Put(ctx, analyzer+"."+instance, body) // a lost one is made good by the next
		}
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
	}
}

// Alive lists the analyzers of which an instance has been heard lately.
func (b *Bus) Alive(ctx context.Context) (map[string]int, error) {
	kv, err := b.js.KeyValue(ctx, kvRegistry)
	if err != nil {
		return nil, err
	}
	keys, err := kv.ListKeys(ctx)
	if err != nil {
		return nil, err
	}
	out := map[string]int{}
	for k := range keys.Keys() {
		for i := range k {
			if k[i] == '.' {
				out[k[:i]]++
				break
			}
		}
	}
	return out, nil
}
