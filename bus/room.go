// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// A full server loses nothing that it has acknowledged, but it takes nothing any
// more, not even the endings. So it must not come to that: below a first mark
// everything is taken, above it no submissions, and above a second one no
// high-volume segments and no images of memory; what is left is for receipts
// and endings. The bus process measures, and writes what it found where every
// host can read it.

// Watermarks are the percentages of a gauge from which on submissions are
// refused, and high-volume data is cut. Zero is 80 and 90.
type Watermarks struct {
	Refuse, Cut int
}

func (w Watermarks) withDefaults() Watermarks {
	if w.Refuse == 0 {
		w.Refuse = 80
	}
	if w.Cut == 0 {
		w.Cut = 90
	}
	return w
}

// String writes them as the flag reads them.
func (w Watermarks) String() string {
	w = w.withDefaults()
	return fmt.Sprintf("%d,%d", w.Refuse, w.Cut)
}

// Set reads "REFUSE,CUT".
func (w *Watermarks) Set(s string) error {
	var v Watermarks
	if n, err := fmt.Sscanf(s+"\n", "%d,%d\n", &v.Refuse, &v.Cut); err != nil || n != 2 {
		return fmt.Errorf("%q is not two percentages such as 80,90", s)
	}
	if err := v.Check(); err != nil {
		return err
	}
	*w = v
	return nil
}

// Type is what help calls the value.
func (w *Watermarks) Type() string { return "percent,percent" }

// Check reports what is wrong with the percentages.
func (w Watermarks) Check() error {
	if w.Refuse < 1 || w.Refuse > w.Cut || w.Cut > 99 {
		return fmt.Errorf("%d,%d: both are between 1 and 99, and the first is not more than the second", w.Refuse, w.Cut)
	}
	return nil
}

// A Gauge is something that can get full.
type Gauge struct {
	Name        string
	Used, Total int64 // bytes
	// RefuseBelow and CutBelow are bytes that must be free besides the percentages.
	RefuseBelow, CutBelow int64
}

// Percent is how full it is.
func (g Gauge) Percent() int {
	if g.Total <= 0 {
		return 0
	}
	return int(min(g.Used, g.Total) * 100 / g.Total)
}

// Levels of a [Room].
const (
	RoomOK     = "ok"
	RoomRefuse = "refuse" // no submissions
	RoomCut    = "cut"    // neither those nor high-volume data
)

// Room is how much room there is for more.
type Room struct {
	Level  string    `json:"level"`
	What   string    `json:"what"`   // the gauge that is fullest
	Detail string    `json:"detail"` // for people: how full it is
	At     time.Time `json:"at"`
}

// Judge says what the fullest of some gauges allows.
func (w Watermarks) Judge(gauges ...Gauge) Room {
	w = w.withDefaults()
	worst, rank := Room{Level: RoomOK}, -1
	for _, g := range gauges {
		p, free := g.Percent(), g.Total-g.Used
		r, level := Room{Level: RoomOK, What: g.Name}, 0
		switch {
		case p >= w.Cut || free < g.CutBelow:
			r.Level, level = RoomCut, 2
		case p >= w.Refuse || free < g.RefuseBelow:
			r.Level, level = RoomRefuse, 1
		}
		r.Detail = fmt.Sprintf("%s is %d %% full, %d MiB are free", g.Name, p, max(0, free)>>20)
		if n := level*1000 + p; n > rank {
			worst, rank = r, n
		}
	}
	return worst
}

// ErrFull says that there is no room for another analysis.
var ErrFull = errors.New("there is no room for another analysis")

// Err is an error that wraps [ErrFull] if no submission is to be taken.
func (r Room) Err() error {
	if r.Level == RoomRefuse || r.Level == RoomCut {
		return fmt.Errorf("%w: %s (make room with petri delete, petri gc or petri archive, and try again; --watermarks sets the limit)", ErrFull, r.Detail)
	}
	return nil
}

const (
	kvRoom    = "ROOM"
	roomKey   = "now"
	roomTTL   = 30 * time.Second // what nobody measures any more is not known
	roomEvery = 3 * time.Second
)

// Gauges returns how full the streams are that have a limit.
func (b *Bus) Gauges(ctx context.Context) ([]Gauge, error) {
	var out []Gauge
	for _, name := range []string{streamLog, streamInbox, objectStreamName(bucketArtifacts), objectStreamName(bucketReports), objectStreamName(bucketArchive)} {
		st, err := b.js.Stream(ctx, name)
		if err != nil {
			return nil, fmt.Errorf("look at %s: %w", name, err)
		}
		if i := st.CachedInfo(); i.Config.MaxBytes > 0 {
			out = append(out, Gauge{Name: "stream " + name, Used: int64(i.State.Bytes), Total: i.Config.MaxBytes})
		}
	}
	return out, nil
}

// KeepMeasuring measures every few seconds, and publishes what it found, until
// ctx is done. disk measures what the streams lie on; it may be nil.
func (b *Bus) KeepMeasuring(ctx context.Context, w Watermarks, disk func() (Gauge, error), log *slog.Logger) error {
	t := time.NewTicker(roomEvery)
	defer t.Stop()
	last := RoomOK
	for {
		room, err := b.measure(ctx, w, disk)
		if err != nil && ctx.Err() == nil {
			log.Error("measure how much room there is", "error", err)
		}
		if err == nil && room.Level != last {
			log.Warn("room for analyses", "level", room.Level, "detail", room.Detail)
			last = room.Level
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-t.C:
		}
	}
}

func (b *Bus) measure(ctx context.Context, w Watermarks, disk func() (Gauge, error)) (Room, error) {
	gauges, err := b.Gauges(ctx)
	if err != nil {
		return Room{}, err
	}
	if disk != nil {
		g, err := disk()
		if err != nil {
			return Room{}, err
		}
		gauges = append(gauges, g)
	}
	room := w.Judge(gauges...)
	room.At = time.Now().UTC()
	body, err := json.Marshal(room)
	if err != nil {
		return room, err
	}
	kv, err := b.js.KeyValue(ctx, kvRoom)
	if err == nil {
		_, err = kv.Put(ctx, roomKey, body)
	}
	return room, err
}

// Room returns what was measured last; nothing is known to be full where nobody
// measures. It asks one question, on a subject of its own, which everybody who
// submits may ask.
func (b *Bus) Room(ctx context.Context) (Room, error) {
	ask, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	m, err := b.request(ask, jetstream.DefaultAPIPrefix+"DIRECT.GET.KV_"+kvRoom+".$KV."+kvRoom+"."+roomKey, nil)
	if errors.Is(err, nats.ErrNoResponders) { // an older Petri's server
		return Room{Level: RoomOK}, nil
	}
	if err != nil {
		return Room{}, fmt.Errorf("ask how much room there is: %w", err)
	}
	if m.Header.Get("Status") != "" || len(m.Data) == 0 {
		return Room{Level: RoomOK}, nil
	}
	var r Room
	if err := json.Unmarshal(m.Data, &r); err != nil {
		return Room{}, fmt.Errorf("ask how much room there is: %w", err)
	}
	return r, nil
}
