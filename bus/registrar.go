// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/petri-sandbox/petri/schemas"
)

// Subjects of the requests that a registrar answers.
const (
	registerPrefix   = "reg."
	unregisterPrefix = "unreg."
)

// A Registrar lets analyzers in and out. It writes their registrations into the
// log and makes their consumers and upload buckets, so that an analyzer itself,
// which parses hostile bytes, need not have the right to make anything. Any
// number of registrars may run; one of them answers.
type Registrar struct {
	b   *Bus
	log *slog.Logger

	// Of one analyzer one request at a time is in work, and several of many:
	// the lock is chosen by the name.
	names [16]sync.Mutex
}

// NewRegistrar returns a registrar that logs to log.
func NewRegistrar(b *Bus, log *slog.Logger) *Registrar { return &Registrar{b: b, log: log} }

// registrarAhead is how many requests may wait in a registrar. Who is not
// answered asks again.
const registrarAhead = 256

// Run works until ctx is done.
func (r *Registrar) Run(ctx context.Context) error {
	requests := make(chan *nats.Msg, registrarAhead)
	for _, subject := range []string{registerPrefix + "*", unregisterPrefix + "*"} {
		sub, err := r.b.nc.ChanQueueSubscribe(subject, "registrar", requests)
		if err != nil {
			return fmt.Errorf("serve registrations: %w", err)
		}
		defer func() { _ = sub.Unsubscribe() }()
	}
	if err := r.b.nc.FlushTimeout(requestTime); err != nil {
		return fmt.Errorf("serve registrations: %w", err)
	}
	var running sync.WaitGroup
	defer running.Wait()
	slots := make(chan struct{}, len(r.names))
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case m := <-requests:
			slots <- struct{}{}
			running.Go(func() {
				defer func() { <-slots }()
				r.answer(ctx, m)
			})
		}
	}
}

// requestTime bounds one request's work. The server makes up to three assets
// for it, and may be choosing a leader. What it is asked for may get lost with the
// old one: each question is asked again after a moment, for others wait behind it.
const requestTime = 30 * time.Second

func (r *Registrar) answer(ctx context.Context, m *nats.Msg) {
	ctx, cancel := context.WithTimeout(ctx, requestTime)
	defer cancel()
	a, err := r.handle(ctx, m)
	if err != nil {
		r.log.Warn("registration refused", "subject", m.Subject, "error", err)
		a = schemas.Registered{Error: oneLine(err.Error())}
		if ctx.Err() != nil || transient(err) {
			return // it is asked again
		}
	}
	body, err := json.Marshal(a)
	if err == nil {
		err = m.Respond(body)
	}
	if err != nil {
		r.log.Warn("answer a registration", "subject", m.Subject, "error", err)
	}
}

// handle does what a request asks for. Who may ask in an analyzer's name is
// decided by the server, by the subject.
func (r *Registrar) handle(ctx context.Context, m *nats.Msg) (schemas.Registered, error) {
	verb, name, _ := strings.Cut(m.Subject, ".")
	if err := schemas.CheckAnalyzer(name); err != nil {
		return schemas.Registered{}, err
	}
	e, err := schemas.ParseEvent(m.Data)
	if err != nil {
		return schemas.Registered{}, err
	}
	h := fnv.New32a()
	_, _ = h.Write([]byte(name))
	lock := &r.names[h.Sum32()%uint32(len(r.names))]
	lock.Lock()
	defer lock.Unlock()
	if verb+"." == unregisterPrefix {
		var u schemas.Unregistration
		if err := e.Decode(&u); err != nil {
			return schemas.Registered{}, err
		}
		if u.Name != name {
			return schemas.Registered{}, fmt.Errorf("%.64q cannot be unregistered on %s", u.Name, m.Subject)
		}
		return schemas.Registered{}, r.b.dismiss(ctx, name)
	}
	var reg schemas.Registration
	if err := e.Decode(&reg); err != nil {
		return schemas.Registered{}, err
	}
	if err := reg.Check(); err != nil {
		return schemas.Registered{}, err
	}
	if reg.Name != name {
		return schemas.Registered{}, fmt.Errorf("%.64q cannot be registered on %s", reg.Name, m.Subject)
	}
	return r.b.admit(ctx, reg)
}

// admit registers an analyzer, and returns what it may use.
func (b *Bus) admit(ctx context.Context, r schemas.Registration) (schemas.Registered, error) {
	replicas, err := b.replicas(ctx)
	if err != nil {
		return schemas.Registered{}, err
	}
	uploads := objectStream(bucketUploads+r.Name, "what "+r.Name+" has handed in and the clerk not yet verified", 8<<30, uploadTTL)
	if err := withPeers(ctx, func(ctx context.Context) error { return b.ensureStream(ctx, uploads, replicas) }); err != nil {
		return schemas.Registered{}, err
	}
	runs := runConsumer(r.Name)
	err = withPeers(ctx, func(ctx context.Context) error {
		_, err := b.js.CreateOrUpdateConsumer(ctx, streamRuns, runs)
		return err
	})
	if err != nil {
		return schemas.Registered{}, fmt.Errorf("make the consumer of the runs of %s: %w", r.Name, err)
	}
	if err := register(ctx, onServer{b}, r); err != nil {
		return schemas.Registered{}, err
	}
	return schemas.Registered{
		Stream: streamLog, Consumer: liveConsumerName(r.Name), Runs: runs.Durable, Uploads: bucketUploads + r.Name, Together: maxTogether,
	}, nil
}

// dismiss ends an analyzer's interest. What it handed in is still read.
func (b *Bus) dismiss(ctx context.Context, analyzer string) error {
	if _, err := b.registration(ctx, analyzer); err != nil {
		if errors.Is(err, ErrNotFound) { // or it was cut off
			err = errors.Join(err, onServer{b}.dropConsumer(ctx, liveConsumerName(analyzer)))
		}
		return err
	}
	return unregister(ctx, onServer{b}, analyzer)
}
