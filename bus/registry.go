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

// Register asks the registrar to write into the log that an analyzer is
// interested from here on, and to make what it needs. Asking again with the same
// words changes nothing: the analyzer goes on where it stood. While no registrar
// answers, Register waits for one until ctx is done.
func (b *Bus) Register(ctx context.Context, r schemas.Registration) error {
	if err := r.Check(); err != nil {
		return fmt.Errorf("register %s: %w", r.Name, err)
	}
	if err := b.askRegistrar(ctx, registerPrefix+r.Name, r.Name, r); err != nil {
		return fmt.Errorf("register %s: %w", r.Name, err)
	}
	return nil
}

// Unregister asks the registrar to end an analyzer's interest: the log says so,
// and its consumer goes. What it owed is then missing, as withdrawn. If it
// registers again it begins behind that.
func (b *Bus) Unregister(ctx context.Context, analyzer string) error {
	if err := schemas.CheckAnalyzer(analyzer); err != nil {
		return err
	}
	if err := b.askRegistrar(ctx, unregisterPrefix+analyzer, analyzer, schemas.Unregistration{Name: analyzer}); err != nil {
		return fmt.Errorf("unregister %s: %w", analyzer, err)
	}
	return nil
}

// askRegistrar sends a request until it is answered or ctx is done.
func (b *Bus) askRegistrar(ctx context.Context, subject, name string, data schemas.Typed) error {
	now := time.Now()
	e, err := schemas.NewEvent(registryTenant, "", name+"/"+schemas.NewID(now), now, schemas.OriginHost, data)
	if err != nil {
		return err
	}
	body, err := json.Marshal(e)
	if err != nil {
		return err
	}
	wait := 20 * time.Millisecond
	for {
		try, cancel := context.WithTimeout(ctx, 5*time.Second)
		m, err := b.request(try, subject, body)
		cancel()
		if err == nil {
			var a schemas.Registered
			if err := json.Unmarshal(m.Data, &a); err != nil {
				return fmt.Errorf("read the registrar's answer: %w", err)
			}
			if a.Error != "" {
				return errors.New(a.Error)
			}
			if a.Together > 0 {
				b.together.Store(int32(min(a.Together, maxTogether)))
			}
			return nil
		}
		if !transient(err) {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("no registrar answers (the process that serves the bus must run: petri up, or petri bus run): %w", errors.Join(ctx.Err(), err))
		case <-time.After(wait):
			wait = min(2*wait, 2*time.Second)
		}
	}
}

// registering is what a registration needs of the log's server.
type registering interface {
	// registered returns the analyzer's last registration and where it lies, 0 if
	// it has none that counts.
	registered(ctx context.Context, analyzer string) (was schemas.Registration, seq uint64, err error)
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
	was, seq, err := on.registered(ctx, r.Name)
	if err != nil {
		return err
	}
	same := seq > 0 && sameRegistration(was, r)
	cfg := liveConsumer(r, seq)
	have, err := on.consumer(ctx, cfg.Durable)
	if err != nil {
		return fmt.Errorf("look for the consumer of %s: %w", r.Name, err)
	}
	if !same {
		if have == nil && seq > 0 {
			cut := liveConsumer(was, seq) // of the registration that there is: it was cut off
			have = &cut
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

// onServer registers on the server.
type onServer struct{ *Bus }

func (b onServer) announce(ctx context.Context, r schemas.Registration) (uint64, error) {
	now := time.Now()
	e, err := schemas.NewEvent(registryTenant, "", r.Name+"/"+schemas.NewID(now), now, schemas.OriginHost, r)
	if err != nil {
		return 0, err
	}
	return b.publish(ctx, registry+r.Name, e)
}

func (b onServer) consumer(ctx context.Context, name string) (*jetstream.ConsumerConfig, error) {
	var cons jetstream.Consumer
	err := retry(ctx, func(ctx context.Context) (err error) {
		cons, err = b.js.Consumer(ctx, streamLog, name)
		return err
	})
	if errors.Is(err, jetstream.ErrConsumerNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return &cons.CachedInfo().Config, nil
}

func (b onServer) setConsumer(ctx context.Context, cfg jetstream.ConsumerConfig) error {
	cfg.FilterSubjects, cfg.FilterSubject = filters(cfg), ""
	return withPeers(ctx, func(ctx context.Context) error {
		_, err := b.js.CreateConsumer(ctx, streamLog, cfg)
		if errors.Is(err, jetstream.ErrConsumerExists) {
			_, err = b.js.UpdateConsumer(ctx, streamLog, cfg)
		}
		return err
	})
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

func (b onServer) retract(ctx context.Context, analyzer string) error {
	now := time.Now()
	e, err := schemas.NewEvent(registryTenant, "", analyzer+"/"+schemas.NewID(now), now, schemas.OriginHost, schemas.Unregistration{Name: analyzer})
	if err != nil {
		return err
	}
	_, err = b.publish(ctx, unregistry+analyzer, e)
	return err
}

func (b onServer) dropConsumer(ctx context.Context, name string) error {
	err := retry(ctx, func(ctx context.Context) error { return b.js.DeleteConsumer(ctx, streamLog, name) })
	if errors.Is(err, jetstream.ErrConsumerNotFound) {
		return nil
	}
	return err
}

// registered returns an analyzer's last registration and where it lies. What
// cannot be read is written anew.
func (b *Bus) registered(ctx context.Context, analyzer string) (was schemas.Registration, seq uint64, err error) {
	m, err := b.lastMsg(ctx, registry+analyzer)
	if errors.Is(err, ErrNotFound) {
		return was, 0, nil
	}
	if err != nil {
		return was, 0, err
	}
	gone, err := b.lastMsg(ctx, unregistry+analyzer)
	if err == nil && gone.Sequence > m.Sequence {
		return was, 0, nil
	}
	if err != nil && !errors.Is(err, ErrNotFound) {
		return was, 0, err
	}
	e, err := schemas.ParseEvent(m.Data)
	if err == nil {
		err = e.Decode(&was)
	}
	if err != nil {
		return schemas.Registration{}, 0, nil
	}
	return was, m.Sequence, nil
}

func sameRegistration(a, b schemas.Registration) bool {
	x, _ := json.Marshal(a)
	y, _ := json.Marshal(b)
	return string(x) == string(y)
}

func liveConsumerName(analyzer string) string { return "az-" + analyzer + "-" + schemas.LiveRun }

func runConsumerName(analyzer string) string { return "az-" + analyzer + "-run" }

// runConsumer has the tasks of all runs of an analyzer. What is given out too
// often is answered by [Bus.AnswerLost], as those of analyses that go on are.
func runConsumer(analyzer string) jetstream.ConsumerConfig {
	return jetstream.ConsumerConfig{
		Durable: runConsumerName(analyzer), FilterSubject: runPrefix + analyzer + ".*.*",
		AckPolicy: jetstream.AckExplicitPolicy, AckWait: TaskAckWait, MaxDeliver: taskMaxDeliver, MaxAckPending: 1000,
	}
}

// TaskAckWait is how long a task may be without a sign of life before it is
// given out again.
const TaskAckWait = 10 * time.Second

// taskMaxDeliver is more than any runner tries, with those who give a task back
// because they are stopped: it is the runner that declares a task poison, by
// handing it in as failed.
const taskMaxDeliver = 16

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

// Heartbeat says that an instance of an analyzer lives, until ctx is done. It is
// a plain publish, for which an analyzer needs no right but that one.
func (b *Bus) Heartbeat(ctx context.Context, analyzer, instance, version string) {
	b.Beats(ctx, func() Beat { return Beat{Analyzer: analyzer, Instance: instance, Version: version} })
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
