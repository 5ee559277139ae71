// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// A Bus is a connection to Petri's server. It is safe for concurrent use and
// survives the server's restarts.
type Bus struct {
	nc *nats.Conn
	js jetstream.JetStream

	encoder *zstd.Encoder // for any number of frames at a time
	frames  sync.Pool     // of *[frameSize]byte
	now     func() time.Time

	slow atomic.Uint64

	mu        sync.Mutex
	lost      time.Time                     // when the connection was lost; zero while there is one
	log       *slog.Logger                  // nil: nothing is logged
	consumers map[string]jetstream.Consumer // that have been looked up, by stream and name

	denied   denials
	stepwise bool   // may not make consumers
	tenant   string // whose user this is, who asks the desk; empty: no tenant's

	absentGrace time.Duration
	leaseEvery  time.Duration // how often a lease is renewed
	endingAgain time.Duration // see the constant
	holds       *holds

	artifacts, answers *group // announcements to the log, finished tasks to the inbox
	quit               func() // ends them
}

// Connect connects to a server. name shows in the server's own lists.
func Connect(ctx context.Context, a Address, name string) (*Bus, error) {
	return connect(ctx, a, name, nil)
}

func connect(ctx context.Context, a Address, name string, in *server.Server) (*Bus, error) {
	b := &Bus{absentGrace: absentGrace, leaseEvery: leaseTTL / 4, endingAgain: endingAgain, holds: newHolds(), encoder: newEncoder(), frames: sync.Pool{New: func() any { return new([frameSize]byte) }}, now: time.Now}
	opts := []nats.Option{
		nats.Name("petri " + name),
		nats.MaxReconnects(-1), nats.ReconnectWait(100 * time.Millisecond), nats.ReconnectJitter(20*time.Millisecond, 20*time.Millisecond),
		nats.Timeout(5 * time.Second), nats.PingInterval(5 * time.Second), nats.MaxPingsOutstanding(2),
		// A publish that finds no connection fails at once: the caller decides
		// what to do meanwhile.
		nats.ReconnectBufSize(-1),
		nats.ErrorHandler(b.asyncError),
		nats.DisconnectErrHandler(func(*nats.Conn, error) { b.setLost(time.Now()) }),
		nats.ReconnectHandler(func(*nats.Conn) { b.setLost(time.Time{}) }),
	}
	if in != nil {
		opts = append(opts, nats.InProcessServer(in))
	}
	auth, user, err := a.auth()
	if err != nil {
		return nil, err
	}
	opts = append(opts, auth...)
	if tenant, ok := strings.CutPrefix(user, "user-"); ok {
		b.tenant = tenant
	}
	b.stepwise = b.tenant != "" || strings.HasPrefix(user, "analyzer-")
	if b.nc, err = nats.Connect(a.URL, opts...); err != nil {
		return nil, fmt.Errorf("connect to NATS at %s: %w", redact(a.URL), err)
	}
	if b.nc.MaxPayload() < MaxPayload {
		b.nc.Close()
		return nil, fmt.Errorf("the NATS server at %s takes messages of %d bytes; Petri needs %d (set max_payload: 4MB in its configuration)", redact(a.URL), b.nc.MaxPayload(), MaxPayload)
	}
	js, err := jetstream.New(b.nc, jetstream.WithDefaultTimeout(10*time.Second))
	if err != nil {
		b.nc.Close()
		return nil, err
	}
	b.js = honest{js, b}
	var info *jetstream.AccountInfo
	err = retry(ctx, func(ctx context.Context) (err error) { // a cluster that is on its way up has no leader who answers
		info, err = b.js.AccountInfo(ctx)
		return err
	})
	if err != nil {
		b.nc.Close()
		return nil, fmt.Errorf("ask the NATS server for JetStream: %w (is JetStream enabled?)", err)
	}
	if info.API.Level < minAPILevel {
		b.nc.Close()
		return nil, fmt.Errorf("the NATS server's JetStream API has level %d; Petri needs %d (nats-server 2.12 or newer)", info.API.Level, minAPILevel)
	}
	groups, quit := context.WithCancel(context.Background())
	b.artifacts, b.answers, b.quit = newGroup(b), newGroup(b), quit
	go b.artifacts.run(groups)
	go b.answers.run(groups)
	return b, nil
}

// minAPILevel is that of nats-server 2.12, which has atomic batches.
const minAPILevel = 2

// redact takes a password out of a URL for messages.
func redact(url string) string {
	if i := strings.LastIndexByte(url, '@'); i >= 0 {
		return "nats://…@" + url[i+1:]
	}
	return url
}

func (b *Bus) setLost(t time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if t.IsZero() || b.lost.IsZero() {
		b.lost = t
	}
}

// LogTo has the connection's own troubles logged: nobody else hears of them.
func (b *Bus) LogTo(log *slog.Logger) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.log = log
}

// Slow counts how often this process has been too slow for what it subscribed
// to, so that messages were dropped. What comes out of a stream is given out
// again; of a live view they are lost.
func (b *Bus) Slow() uint64 { return b.slow.Load() }

// asyncError takes the errors that no call returns.
func (b *Bus) asyncError(_ *nats.Conn, sub *nats.Subscription, err error) {
	b.denied.note(err)
	b.mu.Lock()
	log := b.log
	b.mu.Unlock()
	if !errors.Is(err, nats.ErrSlowConsumer) {
		if log != nil {
			log.Warn("the connection to the bus", "error", err)
		}
		return
	}
	n := b.slow.Add(1)
	if log == nil {
		return
	}
	dropped := 0
	if sub != nil {
		dropped, _ = sub.Dropped()
	}
	log.Warn("a client is too slow: messages were dropped", "dropped", dropped, "times", n)
}

// Away is how long there has been no connection; zero while there is one.
func (b *Bus) Away() time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.lost.IsZero() {
		return 0
	}
	return time.Since(b.lost)
}

// consumer looks a consumer up, once.
func (b *Bus) consumer(ctx context.Context, stream, name string) (jetstream.Consumer, error) {
	b.mu.Lock()
	cons, ok := b.consumers[stream+"/"+name]
	b.mu.Unlock()
	if ok {
		return cons, nil
	}
	err := retry(ctx, func(ctx context.Context) (err error) {
		cons, err = b.js.Consumer(ctx, stream, name)
		return err
	})
	if err != nil {
		return nil, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.consumers == nil {
		b.consumers = map[string]jetstream.Consumer{}
	}
	b.consumers[stream+"/"+name] = cons
	return cons, nil
}

// forget has the next caller look a consumer up again.
func (b *Bus) forget(stream, name string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.consumers, stream+"/"+name)
}

// JetStream is the connection's own, for tools that look at what lies there.
func (b *Bus) JetStream() jetstream.JetStream { return b.js }

// Close ends the connection. What was published and not yet acknowledged is
// given up.
func (b *Bus) Close() {
	b.holds.close()
	b.quit()
	b.nc.Close()
}

// patience is how long a server may be in trouble before a call gives up.
const patience = 90 * time.Second

// retry calls f until it succeeds, fails for good, ctx is done, or patience
// has run out. A try takes 2 s at most, so that a message lost in a leader's
// change is sent again.
func retry(ctx context.Context, f func(ctx context.Context) error) error {
	return retryFor(ctx, 2*time.Second, f)
}

// retryFor is retry with another time for one try.
func retryFor(ctx context.Context, each time.Duration, f func(ctx context.Context) error) error {
	wait, begin := 20*time.Millisecond, time.Now()
	for {
		try, cancel := context.WithTimeout(ctx, each)
		err := f(try)
		cancel()
		if err == nil || !transient(err) {
			return err
		}
		if time.Since(begin) > patience {
			return fmt.Errorf("the NATS server has not answered for %s: %w", patience, err)
		}
		select {
		case <-ctx.Done():
			return errors.Join(ctx.Err(), err)
		case <-time.After(wait):
			wait = min(2*wait, time.Second)
		}
	}
}

// passing is an error of one message that trying again mends, although the same
// one of a batch may be the batch's own fault.
type passing struct{ error }

func (p passing) Unwrap() error { return p.error }

func isPassing(err error) bool {
	var p passing
	return errors.As(err, &p)
}

// ofOne is what the server says of one message.
func ofOne(err error) error {
	if hasCode(err, codeSubjectInFlight) {
		return passing{err}
	}
	return err
}

// transient reports whether trying again may help.
func transient(err error) bool {
	return errors.Is(err, context.DeadlineExceeded) || errors.Is(err, nats.ErrTimeout) || errors.Is(err, nats.ErrNoResponders) ||
		errors.Is(err, jetstream.ErrNoStreamResponse) || errors.Is(err, nats.ErrConnectionReconnecting) ||
		errors.Is(err, nats.ErrReconnectBufExceeded) || errors.Is(err, nats.ErrDisconnected) ||
		hasCode(err, codeTooManyRequests) || hasCode(err, codeRepeatedInFlight) || hasCode(err, codeUnavailable) || isPassing(err)
}
