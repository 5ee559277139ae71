// SPDX-License-Identifier: Apache-2.0

package bus_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/petri-sandbox/petri/bus"
	"github.com/petri-sandbox/petri/schemas"
)

// refused reports whether an analyzer has handed in all that it may.
func refused(err error) bool {
	var api *jetstream.APIError
	return errors.As(err, &api) && api.ErrorCode == 10077 && api.Description == "maximum messages per subject exceeded"
}

// TestFloodingAnalyzer has one analyzer fill the inbox, and its dead letters, with
// whatever its credentials let it write, while another works: it is refused when it
// has had its share, and the other hands in as ever. That one's answers and its dead
// letters are all there.
func TestFloodingAnalyzer(t *testing.T) {
	t.Parallel()
	b := start(t)
	for _, name := range []string{"honest", "hostile"} {
		register(t, b, name, schemas.KindSample)
	}
	stop := clerkWith(t, b, nil)
	wrong := newAnalysis(t, b)
	const letters, tasks = 20, 40
	for _, ref := range wrong.refs("honest", letters) {
		handIn(t, b, ref, "one", schemas.FinishedTask{Findings: []schemas.Finding{{Kind: "x"}}}) // no title
	}
	drained(t, b)
	stop()
	ofHonest := func() (n int) {
		for _, d := range deadLetters(t, b) {
			if strings.HasPrefix(d.Subject, "in.honest.") {
				n++
			}
		}
		return n
	}
	if n := ofHonest(); n != letters {
		t.Fatalf("%d dead letters, not %d", n, letters)
	}

	js := b.JetStream()
	junk := make([]byte, 200<<10)
	flood := func(ctx context.Context, i int) error {
		try, cancel := context.WithTimeout(ctx, time.Minute)
		defer cancel()
		_, err := js.Publish(try, fmt.Sprint("in.hostile.", i), junk, jetstream.WithRetryAttempts(0))
		return err
	}
	sent := 0
	for err := error(nil); ; sent++ { // each names another task
		if err = flood(t.Context(), sent); refused(err) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if sent != bus.MaxAnswers {
		t.Errorf("%d messages were taken, not %d", sent, bus.MaxAnswers)
	}
	if room, err := b.Gauges(t.Context()); err != nil || slices.ContainsFunc(room, func(g bus.Gauge) bool { return g.Name == "stream INBOX" && g.Used > g.Total/4 }) {
		t.Errorf("room: %+v, %v", room, err)
	}
	flooding, enough := context.WithCancel(t.Context())
	defer enough()
	var hostile, honest sync.WaitGroup
	hostile.Go(func() {
		for i := sent; flooding.Err() == nil; i++ {
			_ = flood(flooding, i) // one that has no room, too
		}
	})
	a := newAnalysis(t, b)
	refs := a.refs("honest", tasks)
	a.event(schemas.StartAnalysis{})
	for i, ref := range refs {
		honest.Go(func() {
			f := schemas.FinishedTask{Task: ref, Version: "1.0.0", Instance: "one", Status: schemas.TaskDone, Findings: []schemas.Finding{{Kind: "x", Title: fmt.Sprint(i)}}}
			if err := b.Finish(t.Context(), f); err != nil {
				t.Error(err)
			}
		})
	}
	honest.Wait() // there is no clerk yet
	clerk(t, b)
	receipts := func() (n int) {
		err := b.Read(t.Context(), "default", a.id, 0, func(e bus.Entry) error {
			var r schemas.Receipt
			if e.Event.Family() == "receipt" && e.Event.Decode(&r) == nil && r.Task.Analyzer == "honest" && r.Status == schemas.TaskDone {
				n++
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	eventually(t, func() bool { return receipts() == tasks })
	// It goes on until it has had more than its share.
	eventually(t, func() bool {
		st, err := js.Stream(t.Context(), "INBOX")
		return err == nil && st.CachedInfo().State.LastSeq > letters+tasks+2*bus.LettersMax
	})
	enough()
	hostile.Wait()
	drained(t, b)

	// Letters of its own it may write itself.
	for i := range bus.MaxLetters + 100 {
		if _, err := js.PublishAsync("dead.LOG.az-hostile-live", []byte(fmt.Sprint(i))); err != nil {
			t.Fatal(err)
		}
		if i%200 == 199 {
			<-js.PublishAsyncComplete()
		}
	}
	<-js.PublishAsyncComplete()
	if _, err := js.Publish(t.Context(), "dead.LOG.az-hostile-live", junk); err == nil {
		t.Error("a letter may be of any size")
	}
	if n := ofHonest(); n != letters {
		t.Errorf("of %d dead letters %d are left", letters, n)
	}
	buried, own := 0, 0
	for _, d := range deadLetters(t, b) {
		switch {
		case strings.HasPrefix(d.Subject, "in.hostile."):
			buried++
			if d.Size != len(junk) || len(d.Body) >= d.Size {
				t.Errorf("a letter has %d bytes of %d", len(d.Body), d.Size)
			}
			if err := b.RetryDead(t.Context(), d.ID); err == nil || !strings.Contains(err.Error(), "were kept") {
				t.Errorf("retry of what was cut: %v", err)
			}
		case d.Consumer == "az-hostile-live":
			own++
		}
	}
	if buried < bus.LettersMax || buried > 4*bus.LettersMax { // of a window or some
		t.Errorf("%d of the junk were buried", buried)
	}
	if own != bus.MaxLetters {
		t.Errorf("%d letters of its own, not %d", own, bus.MaxLetters)
	}
	account(t, b, a, wrong)
}

// TestAnswersOverShare has an analyzer hand in more than may wait for the clerk,
// each by itself and then the rest at once: what has no room waits in the analyzer,
// and nothing is lost.
func TestAnswersOverShare(t *testing.T) {
	t.Parallel()
	b := start(t)
	register(t, b, "eager", schemas.KindSample)
	a := newAnalysis(t, b)
	const tasks = bus.MaxAnswers * 5 / 4
	refs := a.refs("eager", tasks)
	a.event(schemas.StartAnalysis{})
	answer := func(ref schemas.TaskRef) error {
		return b.Finish(t.Context(), schemas.FinishedTask{Task: ref, Version: "1.0.0", Instance: "one", Status: schemas.TaskDone, Findings: []schemas.Finding{{Kind: "x", Title: "x"}}})
	}
	for _, ref := range refs[:bus.MaxAnswers] {
		if err := answer(ref); err != nil {
			t.Fatal(err)
		}
	}
	var all sync.WaitGroup
	for _, ref := range refs[bus.MaxAnswers:] {
		all.Go(func() {
			if err := answer(ref); err != nil {
				t.Error(err)
			}
		})
	}
	if n := messages(t, b, "INBOX"); n != bus.MaxAnswers {
		t.Errorf("%d messages wait", n)
	}
	clerk(t, b)
	all.Wait()
	if missing := a.wait(time.Minute); len(missing) > 0 {
		t.Errorf("missing: %d", len(missing))
	}
	account(t, b, a)
}

// TestInboxOfOlderServer has answers in an inbox without shares, as it was made
// before there were any: they are committed as they lie there.
func TestInboxOfOlderServer(t *testing.T) {
	t.Parallel()
	b := start(t)
	register(t, b, "static", schemas.KindSample)
	st, err := b.JetStream().Stream(t.Context(), "INBOX")
	if err != nil {
		t.Fatal(err)
	}
	older := st.CachedInfo().Config
	older.SubjectTransform, older.MaxMsgsPerSubject, older.DiscardNewPerSubject, older.MaxBytes = nil, -1, false, 16<<20
	if _, err := b.JetStream().UpdateStream(t.Context(), older); err != nil {
		t.Fatal(err)
	}
	a := newAnalysis(t, b)
	refs := a.refs("static", 6)
	a.event(schemas.StartAnalysis{})
	answer := func(refs []schemas.TaskRef) {
		for _, ref := range refs {
			handIn(t, b, ref, "one", schemas.FinishedTask{Findings: []schemas.Finding{{Kind: "x", Title: "x"}}})
		}
	}
	answer(refs[:3])
	if err := b.Reconcile(t.Context(), bus.Limits{Log: 64 << 20, Store: 256 << 20}); err != nil {
		t.Fatal(err)
	}
	answer(refs[3:])
	clerk(t, b)
	if missing := a.wait(time.Minute, "static"); len(missing) > 0 {
		t.Errorf("missing: %+v", missing)
	}
	if n := len(deadLetters(t, b)); n != 0 {
		t.Errorf("%d answers were refused", n)
	}
	account(t, b, a)
}
