// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
)

// TestSlowConsumer has a subscriber that does not come back.
func TestSlowConsumer(t *testing.T) {
	t.Parallel()
	s, err := StartServer(t.TempDir(), ServerOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	b, err := s.Connect(t.Context(), "test")
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	said := make(lines, 100)
	b.LogTo(slog.New(slog.NewTextHandler(said, nil)))
	release := make(chan struct{})
	sub, err := b.nc.Subscribe("live.x", func(*nats.Msg) { <-release })
	if err != nil {
		t.Fatal(err)
	}
	defer close(release)
	if err := sub.SetPendingLimits(2, -1); err != nil {
		t.Fatal(err)
	}
	for range 10 {
		if err := b.nc.Publish("live.x", nil); err != nil {
			t.Fatal(err)
		}
	}
	select {
	case line := <-said:
		if !strings.Contains(line, "too slow") || !strings.Contains(line, "times=1") {
			t.Error(line)
		}
	case <-time.After(2 * time.Minute):
		t.Fatal("nobody hears of it")
	}
}

// lines passes what is logged on.
type lines chan string

func (l lines) Write(b []byte) (int, error) {
	select {
	case l <- string(b):
	default:
	}
	return len(b), nil
}
