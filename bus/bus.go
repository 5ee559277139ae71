// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/petri-sandbox/petri/bus/auth"
)

// A Bus is a connection to Petri's server. It is safe for concurrent use and
// survives the server's restarts.
type Bus struct {
	nc *nats.Conn
	js jetstream.JetStream

	encoder *zstd.Encoder // for any number of frames at a time
	decoder *zstd.Decoder // likewise
	frames  sync.Pool     // of *[frameSize]byte
	now     func() time.Time

	slow atomic.Uint64

	mu        sync.Mutex
	lost      time.Time                     // when the connection was lost; zero while there is one
	owing     time.Time                     // when what the server has not answered was asked; zero: it answers
	log       *slog.Logger                  // nil: nothing is logged
	consumers map[string]jetstream.Consumer // that have been looked up, by stream and name

	denied   denials
	stepwise bool   // may not make consumers
	user     string // who this is to the server, by its credentials; empty: there are none
	tenant   string // whose user this is, who asks the desk; empty: no tenant's

	absentGrace time.Duration
	leaseEvery  time.Duration // how often a lease is renewed
	endingAgain time.Duration // see the constant
	holds       *holds

	artifacts, answers, small *group       // announcements to the log, finished tasks to the inbox, objects of one chunk
	quit                      func()       // ends them
	together                  atomic.Int32 // finished tasks that the clerk takes in one message
}

// Connect connects to a server. name shows in the server's own lists.
func Connect(ctx context.Context, a Address, name string) (*Bus, error) {
	return connect(ctx, a, name, nil)
}

func connect(ctx context.Context, a Address, name string, in *server.Server) (*Bus, error) {
	b := &Bus{absentGrace: absentGrace, leaseEvery: leaseTTL / 4, endingAgain: endingAgain, holds: newHolds(), encoder: newEncoder(), decoder: newDecoder(), frames: sync.Pool{New: func() any { return new([frameSize]byte) }}, now: time.Now}
	opts := []nats.Option{
		nats.Name("petri " + name),
		nats.MaxReconnects(-1), nats.ReconnectWait(100 * time.Millisecond), nats.ReconnectJitter(20*time.Millisecond, 20*time.Millisecond),
		nats.Timeout(dialTimeout), nats.PingInterval(5 * time.Second), nats.MaxPingsOutstanding(2),
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
	who, user, err := a.auth()
	if err != nil {
		return nil, err
	}
	opts, b.user = append(opts, who...), user
	if tenant, ok := strings.CutPrefix(user, "user-"); ok {
		b.tenant = tenant
	}
	b.stepwise = b.tenant != "" || user == string(auth.Reporter) || user == string(auth.Clerk) || strings.HasPrefix(user, string(auth.Analyzer)+"-")
	for tries := 1; ; tries++ {
		if b.nc, err = nats.Connect(a.URL, opts...); err == nil || !speechless(err) || tries == 3 || ctx.Err() != nil {
			break
		}
	}
	if err != nil {
		err = fmt.Errorf("connect to NATS at %s: %w", redact(a.URL), err)
		var network *net.OpError
		var stranger *tls.CertificateVerificationError
		switch {
		case errors.As(err, &stranger):
			err = fmt.Errorf("%w (name the authority of its certificate: --ca FILE)", err)
		case errors.Is(err, nats.ErrNoServers), errors.As(err, &network):
			err = fmt.Errorf("%w (%w: is one up there, and are address and port right?)", err, ErrUnreachable)
		}
		if errors.Is(err, nats.ErrAuthorization) || errors.Is(err, nats.ErrAuthExpired) {
			err = fmt.Errorf("%w: the server takes no such credentials: there are none (--creds FILE), or they have expired or were revoked (new ones: petri bus user)", err)
		}
		return nil, err
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
		return nil, noJetStream(err)
	}
	if info.API.Level < minAPILevel {
		b.nc.Close()
		return nil, fmt.Errorf("the NATS server's JetStream API has level %d; Petri needs %d (nats-server 2.12 or newer)", info.API.Level, minAPILevel)
	}
	groups, quit := context.WithCancel(context.Background())
	b.artifacts, b.answers, b.small, b.quit = newGroup(b), newGroup(inboxLog{b}), newGroup(b), quit
	for _, g := range []*group{b.artifacts, b.answers, b.small} {
		go g.run(groups)
	}
	return b, nil
}

// speechless reports whether a server took a connection and then said nothing for
// too long, as one does whose machine is busy.
func speechless(err error) bool {
	var network *net.OpError
	return errors.Is(err, nats.ErrTimeout) || errors.As(err, &network) && network.Op != "dial" && network.Timeout()
}

// noJetStream says why a server has no log for who asks.
func noJetStream(err error) error {
	switch {
	case errors.Is(err, ErrDenied):
		return fmt.Errorf("these credentials are for live messages only, and the log is not for them: %w; follow them with any NATS client (docs/live.md), or name other credentials (--creds FILE)", ErrDenied)
	case errors.Is(err, nats.ErrNoResponders), errors.Is(err, jetstream.ErrJetStreamNotEnabled), errors.Is(err, jetstream.ErrJetStreamNotEnabledForAccount):
		return fmt.Errorf("the NATS server keeps no streams: %w (add jetstream {} to its configuration, or begin with petri bus init, whose servers do)", err)
	}
	return fmt.Errorf("ask the NATS server for its streams: %w (is it up, and has its cluster more than half of its servers?)", err)
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

// asyncError takes the errors that no call returns. Of what this process is too
// slow for messages are dropped: what comes out of a stream is given out again; of
// a live view they are lost.
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

// Silent is how long the server has not answered what it is asked, be it away or
// without a leader; zero while it answers.
func (b *Bus) Silent() time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	since := b.lost
	if since.IsZero() || !b.owing.IsZero() && b.owing.Before(since) {
		since = b.owing
	}
	if since.IsZero() {
		return 0
	}
	return time.Since(since)
}

// answered notes how a request ended that began then.
func (b *Bus) answered(asked time.Time, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case errors.Is(err, context.Canceled): // nobody waited for the answer
	case err == nil || !transient(err):
		b.owing = time.Time{}
	case b.owing.IsZero():
		b.owing = asked
	}
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
			if isPassing(err) {
				return fmt.Errorf("tried for %s: %w", patience, err)
			}
			return fmt.Errorf("the NATS server has not answered for %s: %w (is it up, and of a cluster more than half?)", patience, err)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", ctx.Err(), err)
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
