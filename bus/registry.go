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
	if _, err := b.js.CreateOrUpdateConsumer(ctx, streamRuns, runConsumer(r.Name)); err != nil {
		return fmt.Errorf("make the consumer of the runs of %s: %w", r.Name, err)
	}
	return register(ctx, registrar{b}, r)
}

// registering is what a registration needs of the log's server.
type registering interface {
	// registered returns where the analyzer's last registration lies, 0 if it
	// has none that counts, and whether it says the same.
	registered(ctx context.Context, r schemas.Registration) (seq uint64, same bool, err error)
	// announce puts a registration into the log.
	announce(ctx context.Context, r schemas.Registration) (seq uint64, err error)
	// consumer returns the configuration of a consumer, nil if there is none.
	consumer(ctx context.Context, name string) (*jetstream.ConsumerConfig, error)
	// setConsumer makes a consumer, or changes the filters of the one there is.
	setConsumer(ctx context.Context, cfg jetstream.ConsumerConfig) error
	// retract puts the end of an analyzer's interest into the log.
	retract(ctx context.Context, analyzer string) error
	// dropConsumer deletes a consumer, if there is one.
	dropConsumer(ctx context.Context, name string) error
}

// register registers, and can be cut off anywhere and repeated. Whoever
// registers anew for more kinds is given those before the log says so: what is
// announced right behind would else be behind a consumer that had passed it by.
// What it is then given too early nobody waits for.
func register(ctx context.Context, on registering, r schemas.Registration) error {
	seq, same, err := on.registered(ctx, r)
	if err != nil {
		return err
	}
	cfg := liveConsumer(r, seq)
	have, err := on.consumer(ctx, cfg.Durable)
	if err != nil {
		return fmt.Errorf("look for the consumer of %s: %w", r.Name, err)
	}
	if !same {
		if have == nil && seq > 0 {
			have = &cfg // of the registration that there is: it was cut off
		}
		if have != nil {
			wide := *have
			wide.FilterSubjects = union(filters(*have), cfg.FilterSubjects)
			if err := on.setConsumer(ctx, wide); err != nil {
				return fmt.Errorf("widen the consumer of %s: %w", r.Name, err)
			}
			have = &wide
		}
		if seq, err = on.announce(ctx, r); err != nil {
			return err
		}
		cfg = liveConsumer(r, seq)
	}
	if have != nil { // the start of a consumer cannot be changed; what it filters can
		cfg.OptStartSeq = have.OptStartSeq
	}
	if err := on.setConsumer(ctx, cfg); err != nil {
		return fmt.Errorf("make the consumer of %s: %w", r.Name, err)
	}
	return nil
}

// filters are a consumer's filters; the server gives a single one back in
// another field.
func filters(cfg jetstream.ConsumerConfig) []string {
	if cfg.FilterSubject != "" {
		return []string{cfg.FilterSubject}
	}
	return cfg.FilterSubjects
}

func union(a, b []string) []string {
	out := slices.Concat(a, b)
	slices.Sort(out)
	return slices.Compact(out)
}

// registrar registers on the server.
type registrar struct{ *Bus }

func (b registrar) announce(ctx context.Context, r schemas.Registration) (uint64, error) {
	now := time.Now()
	e, err := schemas.NewEvent("_registry", "", r.Name+"/"+schemas.NewID(now), now, schemas.OriginHost, r)
	if err != nil {
		return 0, err
	}
	return b.publish(ctx, registry+r.Name, e)
}

func (b registrar) consumer(ctx context.Context, name string) (*jetstream.ConsumerConfig, error) {
	cons, err := b.js.Consumer(ctx, streamLog, name)
	if errors.Is(err, jetstream.ErrConsumerNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return &cons.CachedInfo().Config, nil
}

func (b registrar) setConsumer(ctx context.Context, cfg jetstream.ConsumerConfig) error {
	cfg.FilterSubjects, cfg.FilterSubject = filters(cfg), ""
	_, err := b.js.CreateConsumer(ctx, streamLog, cfg)
	if errors.Is(err, jetstream.ErrConsumerExists) {
		_, err = b.js.UpdateConsumer(ctx, streamLog, cfg)
	}
	return err
}

// Unregister ends an analyzer's interest: the log says so, and its consumer
// goes. What it owed is then missing, as withdrawn. If it registers again it
// begins behind that.
func (b *Bus) Unregister(ctx context.Context, analyzer string) error {
	if _, err := b.registration(ctx, analyzer); err != nil {
		if errors.Is(err, ErrNotFound) { // or it was cut off
			err = errors.Join(err, registrar{b}.dropConsumer(ctx, liveConsumerName(analyzer)))
		}
		return fmt.Errorf("unregister %s: %w", analyzer, err)
	}
	return unregister(ctx, registrar{b}, analyzer)
}

// unregister can be cut off anywhere and repeated, like [register]. A consumer
// that stays after all goes on where it stood: what it gives nobody waits for.
func unregister(ctx context.Context, on registering, analyzer string) error {
	if err := on.retract(ctx, analyzer); err != nil {
		return fmt.Errorf("unregister %s: %w", analyzer, err)
	}
	if err := on.dropConsumer(ctx, liveConsumerName(analyzer)); err != nil {
		return fmt.Errorf("delete the consumer of %s: %w", analyzer, err)
	}
	return nil
}

func (b registrar) retract(ctx context.Context, analyzer string) error {
	now := time.Now()
	e, err := schemas.NewEvent("_registry", "", analyzer+"/"+schemas.NewID(now), now, schemas.OriginHost, schemas.Unregistration{Name: analyzer})
	if err != nil {
		return err
	}
	_, err = b.publish(ctx, unregistry+analyzer, e)
	return err
}

func (b registrar) dropConsumer(ctx context.Context, name string) error {
	err := b.js.DeleteConsumer(ctx, streamLog, name)
	if errors.Is(err, jetstream.ErrConsumerNotFound) {
		return nil
	}
	return err
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

func runConsumerName(analyzer string) string { return "az-" + analyzer + "-run" }

// runConsumer has the tasks of all runs of an analyzer. They are given out
// until they are answered: the runner answers what it has tried too often.
func runConsumer(analyzer string) jetstream.ConsumerConfig {
	return jetstream.ConsumerConfig{
		Durable: runConsumerName(analyzer), FilterSubject: runPrefix + analyzer + ".*.*",
		AckPolicy: jetstream.AckExplicitPolicy, AckWait: TaskAckWait, MaxDeliver: -1, MaxAckPending: 1000,
	}
}

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

// apply takes a registry entry, and reports whether it was one and whose.
func (i *interest) apply(e Entry) (analyzer string, ok bool) {
	switch e.Event.Type {
	case schemas.Registration{}.EventType():
		var r schemas.Registration
		if e.Event.Decode(&r) == nil && r.Check() == nil {
			i.regs[r.Name], i.known[r.Name] = r, r
		}
		return r.Name, true
	case schemas.Unregistration{}.EventType():
		var u schemas.Unregistration
		if e.Event.Decode(&u) == nil {
			delete(i.regs, u.Name)
		}
		return u.Name, true
	}
	return "", false
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
