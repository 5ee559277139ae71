// SPDX-License-Identifier: Apache-2.0

package auth_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/petri-sandbox/petri/bus"
	"github.com/petri-sandbox/petri/bus/auth"
	"github.com/petri-sandbox/petri/schemas"
)

// TestAnswers has each role ask for everything that it may ask for, with a
// subject that it may not write to as the place for the answer: of the log, of
// the inbox, of the store. None comes there, not even an acknowledgement of what
// it may store, nor a task of its own; of who is in one account with the streams
// they do.
func TestAnswers(t *testing.T) { both(t, answersOn) }

func answersOn(t *testing.T, dir, url string) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	root, err := bus.Connect(ctx, address(dir, url, "bus"), "bus")
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	if err := root.Reconcile(ctx, bus.Limits{Log: 64 << 20, Store: 256 << 20}); err != nil {
		t.Fatal(err)
	}
	if err := root.OpenEndings(ctx, "reporter"); err != nil {
		t.Fatal(err)
	}
	for stream, name := range map[string]string{"LOG": "az-yara-live", "RUNS": "az-yara-run"} {
		if _, err := root.JetStream().CreateOrUpdateConsumer(ctx, stream, jetstream.ConsumerConfig{Durable: name, AckPolicy: jetstream.AckExplicitPolicy}); err != nil {
			t.Fatal(err)
		}
	}
	w, err := root.OpenContext(ctx, "acme", schemas.NewID(time.Now()))
	if err != nil {
		t.Fatal(err)
	}
	for range 50 { // for who takes tasks
		e, err := schemas.NewEvent("acme", strings.Split(w.NextID(), "/")[0], w.NextID(), time.Now(), schemas.OriginHost, schemas.AnalysisCompleted{})
		if err == nil {
			err = w.Write(ctx, e)
		}
		if err != nil {
			t.Fatal(err)
		}
	}

	watcher := dial(t, dir, url, "bus")
	heard, err := watcher.nc.SubscribeSync(">")
	if err != nil {
		t.Fatal(err)
	}
	watcher.flush(t)
	all, err := auth.PermissionsOf(auth.Sandboxd, "")
	if err != nil {
		t.Fatal(err)
	}
	places := []string{"petri.acme.A.context.x", "petri.acme.A.receipt.live.yara.D", "petri._registry.capa", "petri._tombstone.acme.A", "in.capa.T", "$KV.STATE.acme.A", "$O.ART.M.N", "job.acme.amd64.high"}
	ask := func(user string, may []string) (where map[string]bool) {
		t.Helper()
		c := dial(t, dir, url, user)
		asked := 0
		for _, subject := range may {
			subject = strings.NewReplacer("*", "x", ">", "x").Replace(subject)
			body := `{"seq":1,"batch":1,"no_wait":true}`
			switch {
			case strings.HasPrefix(subject, "$JS.ACK."), strings.HasPrefix(subject, "$JS.API.CONSUMER.CREATE."):
				continue
			case strings.HasSuffix(subject, ".INFO"), strings.Contains(subject, "INFO."), strings.HasPrefix(subject, "$JS.API.DIRECT.GET.") && strings.Contains(subject, ".$"):
				body = ""
			case !strings.HasPrefix(subject, "$JS.API."):
				body = "x"
			}
			for _, place := range places {
				if err := c.nc.PublishMsg(&nats.Msg{Subject: subject, Reply: place, Data: []byte(body)}); err != nil {
					t.Fatal(err)
				}
				asked++
			}
		}
		c.flush(t)
		if refused := c.refused(); len(refused) > 0 {
			t.Fatalf("%s may not ask: %q", user, refused)
		}
		// What the server has been asked before is answered before this.
		end := "end." + user
		if err := watcher.nc.PublishRequest("$JS.API.STREAM.INFO.LOG", end, nil); err != nil {
			t.Fatal(err)
		}
		where = map[string]bool{}
		for {
			m, err := heard.NextMsgWithContext(ctx)
			if err != nil {
				t.Fatal(err)
			}
			if m.Subject == end {
				break
			}
			if slices.Contains(places, m.Subject) {
				where[m.Subject] = true
			}
		}
		t.Logf("%s asked %d times", user, asked)
		return where
	}
	for _, col := range columns {
		if slices.Contains([]auth.Role{auth.Archiver, auth.Sandboxd, auth.SIEM}, col.role) { // they share the streams' account; siem asks nothing
			continue
		}
		user, err := auth.UserName(col.role, col.name)
		if err != nil {
			t.Fatal(err)
		}
		p, err := auth.PermissionsOf(col.role, col.name)
		if err != nil {
			t.Fatal(err)
		}
		if where := ask(user, p.Publish); len(where) > 0 {
			t.Errorf("%s has answers sent to %v", user, where)
		}
	}
	if where := ask("bus", all.Publish); len(where) != len(places) {
		t.Errorf("answers that the bus has sent are heard on %v only", fmt.Sprint(where))
	}
}
