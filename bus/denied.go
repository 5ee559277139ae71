// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// denials wakes the calls whose subjects the server says the client may not
// use. It says so on the side: the call that was refused only finds that nobody
// answers.
type denials struct {
	mu     sync.Mutex
	asking map[*asker]struct{}
}

// asker is a call that waits for an answer.
type asker struct {
	patterns []string // of the subjects that it uses
	denied   context.CancelCauseFunc
}

// note takes an error that no call returns.
func (d *denials) note(err error) {
	subject, ok := deniedSubject(err)
	if !ok {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for a := range d.asking {
		if a.uses(subject) {
			a.denied(fmt.Errorf("%s: %w", subject, ErrDenied))
		}
	}
}

// deniedSubject finds the subject in the server's words: Permissions Violation
// for Publish to "x".
func deniedSubject(err error) (string, bool) {
	if !errors.Is(err, nats.ErrPermissionViolation) {
		return "", false
	}
	_, rest, _ := strings.Cut(err.Error(), `"`)
	subject, _, ok := strings.Cut(rest, `"`)
	return subject, ok
}

func (a *asker) uses(subject string) bool {
	for _, p := range a.patterns {
		if matches(p, subject) {
			return true
		}
	}
	return false
}

// matches reports whether a subject matches a pattern with NATS' wildcards.
func matches(pattern, subject string) bool {
	for {
		p, restPattern, moreP := strings.Cut(pattern, ".")
		s, restSubject, moreS := strings.Cut(subject, ".")
		switch {
		case p == ">":
			return true
		case p != "*" && p != s, moreP != moreS:
			return false
		case !moreP:
			return true
		}
		pattern, subject = restPattern, restSubject
	}
}

// watch returns a context that ends when the server denies one of the subjects,
// with an error that wraps [ErrDenied] as its cause. The caller calls done.
func (d *denials) watch(ctx context.Context, patterns ...string) (_ context.Context, done func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	a := &asker{patterns: patterns, denied: cancel}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.asking == nil {
		d.asking = map[*asker]struct{}{}
	}
	d.asking[a] = struct{}{}
	return ctx, func() {
		d.mu.Lock()
		delete(d.asking, a)
		d.mu.Unlock()
		cancel(nil)
	}
}

// deniedOr returns why a watched context ended, if it was a denial, else err.
func deniedOr(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); err != nil && errors.Is(cause, ErrDenied) {
		return cause
	}
	return err
}

// allowed calls f, which asks or publishes on subjects, and returns at once if
// the server denies one of them, where f would find that nobody answers.
func (b *Bus) allowed(ctx context.Context, patterns []string, f func(ctx context.Context) error) error {
	ctx, done := b.denied.watch(ctx, patterns...)
	defer done()
	asked := time.Now()
	err := deniedOr(ctx, f(ctx))
	b.answered(asked, err)
	return err
}

// lasting is allowed for an f whose result lives as long as ctx does, and tries
// again. What comes after the denial is given to drop.
func lasting[T any](ctx context.Context, b *Bus, patterns []string, f func(ctx context.Context) (T, error), drop func(T)) (v T, err error) {
	err = retry(ctx, func(context.Context) error { // f has the whole time's context, and bounds each try itself
		v, err = lastingOnce(ctx, b, patterns, f, drop)
		return err
	})
	return v, err
}

func lastingOnce[T any](ctx context.Context, b *Bus, patterns []string, f func(ctx context.Context) (T, error), drop func(T)) (T, error) {
	type result struct {
		value T
		err   error
	}
	watched, done := b.denied.watch(ctx, patterns...)
	defer done()
	got, asked := make(chan result, 1), time.Now()
	go func() {
		v, err := f(ctx)
		got <- result{v, err}
	}()
	select {
	case r := <-got:
		b.answered(asked, r.err)
		return r.value, deniedOr(watched, r.err)
	case <-watched.Done():
		go func() {
			if r := <-got; r.err == nil {
				drop(r.value)
			}
		}()
		var none T
		return none, context.Cause(watched)
	}
}

// request asks on a subject.
func (b *Bus) request(ctx context.Context, subject string, body []byte) (m *nats.Msg, err error) {
	err = b.allowed(ctx, []string{subject}, func(ctx context.Context) error {
		m, err = b.nc.RequestWithContext(ctx, subject, body)
		return err
	})
	return m, err
}

// honest is a client of JetStream whose calls say at once if they are not
// allowed.
type honest struct {
	jetstream.JetStream
	b *Bus
}

const apiPrefix = jetstream.DefaultAPIPrefix

// Subjects by which a stream is described, read, and given to consumers.
func describes(stream string) []string { return []string{apiPrefix + "STREAM.INFO." + stream} }
func gets(stream string) []string {
	return []string{apiPrefix + "STREAM.MSG.GET." + stream, apiPrefix + "DIRECT.GET." + stream, apiPrefix + "DIRECT.GET." + stream + ".>"}
}
func consumes(stream string) []string {
	return []string{apiPrefix + "CONSUMER.CREATE." + stream, apiPrefix + "CONSUMER.CREATE." + stream + ".>",
		apiPrefix + "CONSUMER.DURABLE.CREATE." + stream + ".>", apiPrefix + "CONSUMER.INFO." + stream + ".>"}
}

func (h honest) PublishMsg(ctx context.Context, m *nats.Msg, opts ...jetstream.PublishOpt) (ack *jetstream.PubAck, err error) {
	err = h.b.allowed(ctx, []string{m.Subject}, func(ctx context.Context) error {
		ack, err = h.JetStream.PublishMsg(ctx, m, opts...)
		return err
	})
	return ack, err
}

func (h honest) AccountInfo(ctx context.Context) (info *jetstream.AccountInfo, err error) {
	err = h.b.allowed(ctx, []string{apiPrefix + "INFO"}, func(ctx context.Context) error {
		info, err = h.JetStream.AccountInfo(ctx)
		return err
	})
	return info, err
}

func (h honest) Stream(ctx context.Context, name string) (s jetstream.Stream, err error) {
	err = retry(ctx, func(ctx context.Context) error {
		return h.b.allowed(ctx, describes(name), func(ctx context.Context) error {
			s, err = h.JetStream.Stream(ctx, name)
			return err
		})
	})
	if err != nil {
		return nil, lacks(name, err)
	}
	return honestStream{s, h.b, name}, nil
}

func (h honest) Consumer(ctx context.Context, stream, name string) (c jetstream.Consumer, err error) {
	err = h.b.allowed(ctx, consumes(stream), func(ctx context.Context) error {
		c, err = h.JetStream.Consumer(ctx, stream, name)
		return err
	})
	return c, err
}

func (h honest) CreateOrUpdateConsumer(ctx context.Context, stream string, cfg jetstream.ConsumerConfig) (c jetstream.Consumer, err error) {
	err = h.b.allowed(ctx, consumes(stream), func(ctx context.Context) error {
		c, err = h.JetStream.CreateOrUpdateConsumer(ctx, stream, cfg)
		return err
	})
	return c, err
}

func (h honest) OrderedConsumer(ctx context.Context, stream string, cfg jetstream.OrderedConsumerConfig) (jetstream.Consumer, error) {
	return lasting(ctx, h.b, append(describes(stream), consumes(stream)...), func(ctx context.Context) (jetstream.Consumer, error) {
		return h.JetStream.OrderedConsumer(ctx, stream, cfg)
	}, func(jetstream.Consumer) {}) // the server drops it
}

func (h honest) KeyValue(ctx context.Context, bucket string) (kv jetstream.KeyValue, err error) {
	err = retry(ctx, func(ctx context.Context) error {
		return h.b.allowed(ctx, describes("KV_"+bucket), func(ctx context.Context) error {
			kv, err = h.JetStream.KeyValue(ctx, bucket)
			return err
		})
	})
	if err != nil {
		return nil, lacks(bucket, err)
	}
	return honestBucket{kv, h.b, bucket}, nil
}

// lacks says what to do if a server has not what Petri keeps there.
func lacks(name string, err error) error {
	if errors.Is(err, jetstream.ErrStreamNotFound) || errors.Is(err, jetstream.ErrBucketNotFound) {
		return fmt.Errorf("the server has no %s: %w (petri bus run makes what Petri keeps there; on one machine: petri up)", name, err)
	}
	return err
}

type honestStream struct {
	jetstream.Stream
	b    *Bus
	name string
}

func (s honestStream) Info(ctx context.Context, opts ...jetstream.StreamInfoOpt) (info *jetstream.StreamInfo, err error) {
	err = s.b.allowed(ctx, describes(s.name), func(ctx context.Context) error {
		info, err = s.Stream.Info(ctx, opts...)
		return err
	})
	return info, err
}

func (s honestStream) GetMsg(ctx context.Context, seq uint64, opts ...jetstream.GetMsgOpt) (m *jetstream.RawStreamMsg, err error) {
	err = s.b.allowed(ctx, gets(s.name), func(ctx context.Context) error {
		m, err = s.Stream.GetMsg(ctx, seq, opts...)
		return err
	})
	return m, err
}

func (s honestStream) Purge(ctx context.Context, opts ...jetstream.StreamPurgeOpt) error {
	return s.b.allowed(ctx, []string{apiPrefix + "STREAM.PURGE." + s.name}, func(ctx context.Context) error { return s.Stream.Purge(ctx, opts...) })
}

func (s honestStream) DeleteMsg(ctx context.Context, seq uint64) error {
	return s.b.allowed(ctx, []string{apiPrefix + "STREAM.MSG.DELETE." + s.name}, func(ctx context.Context) error { return s.Stream.DeleteMsg(ctx, seq) })
}

type honestBucket struct {
	jetstream.KeyValue
	b      *Bus
	bucket string
}

func (k honestBucket) key(key string) []string { return []string{"$KV." + k.bucket + "." + key} }

func (k honestBucket) Get(ctx context.Context, key string) (e jetstream.KeyValueEntry, err error) {
	err = retry(ctx, func(ctx context.Context) error {
		return k.b.allowed(ctx, gets("KV_"+k.bucket), func(ctx context.Context) error {
			e, err = k.KeyValue.Get(ctx, key)
			return err
		})
	})
	return e, err
}

func (k honestBucket) Put(ctx context.Context, key string, value []byte) (rev uint64, err error) {
	err = k.b.allowed(ctx, k.key(key), func(ctx context.Context) error {
		rev, err = k.KeyValue.Put(ctx, key, value)
		return err
	})
	return rev, err
}

func (k honestBucket) Create(ctx context.Context, key string, value []byte, opts ...jetstream.KVCreateOpt) (rev uint64, err error) {
	err = k.b.allowed(ctx, k.key(key), func(ctx context.Context) error {
		rev, err = k.KeyValue.Create(ctx, key, value, opts...)
		return err
	})
	return rev, err
}

func (k honestBucket) Update(ctx context.Context, key string, value []byte, revision uint64) (rev uint64, err error) {
	err = k.b.allowed(ctx, k.key(key), func(ctx context.Context) error {
		rev, err = k.KeyValue.Update(ctx, key, value, revision)
		return err
	})
	return rev, err
}

func (k honestBucket) Delete(ctx context.Context, key string, opts ...jetstream.KVDeleteOpt) error {
	return k.b.allowed(ctx, k.key(key), func(ctx context.Context) error { return k.KeyValue.Delete(ctx, key, opts...) })
}

func (k honestBucket) Purge(ctx context.Context, key string, opts ...jetstream.KVDeleteOpt) error {
	return k.b.allowed(ctx, k.key(key), func(ctx context.Context) error { return k.KeyValue.Purge(ctx, key, opts...) })
}

func (k honestBucket) Watch(ctx context.Context, keys string, opts ...jetstream.WatchOpt) (jetstream.KeyWatcher, error) {
	return lasting(ctx, k.b, consumes("KV_"+k.bucket), func(ctx context.Context) (jetstream.KeyWatcher, error) {
		return k.KeyValue.Watch(ctx, keys, opts...)
	}, func(w jetstream.KeyWatcher) { _ = w.Stop() })
}

func (k honestBucket) WatchAll(ctx context.Context, opts ...jetstream.WatchOpt) (jetstream.KeyWatcher, error) {
	return k.Watch(ctx, ">", opts...)
}

func (k honestBucket) ListKeys(ctx context.Context, opts ...jetstream.WatchOpt) (jetstream.KeyLister, error) {
	return lasting(ctx, k.b, consumes("KV_"+k.bucket), func(ctx context.Context) (jetstream.KeyLister, error) {
		return k.KeyValue.ListKeys(ctx, opts...)
	}, func(l jetstream.KeyLister) { _ = l.Stop() })
}

func (k honestBucket) ListKeysFiltered(ctx context.Context, filters ...string) (jetstream.KeyLister, error) {
	return lasting(ctx, k.b, consumes("KV_"+k.bucket), func(ctx context.Context) (jetstream.KeyLister, error) {
		return k.KeyValue.ListKeysFiltered(ctx, filters...)
	}, func(l jetstream.KeyLister) { _ = l.Stop() })
}
