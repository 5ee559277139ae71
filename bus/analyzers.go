// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/petri-sandbox/petri/schemas"
)

// A Beat is what an instance of an analyzer says of itself every few seconds.
type Beat struct {
	Analyzer string    `json:"analyzer"`
	Instance string    `json:"instance"`
	Version  string    `json:"version"`
	Since    time.Time `json:"since,omitzero"` // when it began; its counts are from there on
	Running  int       `json:"running,omitempty"`
	Done     uint64    `json:"done,omitempty"`
	Failed   uint64    `json:"failed,omitempty"`
	Skipped  uint64    `json:"skipped,omitempty"`
	Rate     float64   `json:"rate,omitempty"` // tasks per second lately
	Error    string    `json:"error,omitempty"`
	ErrorAt  time.Time `json:"error_at,omitzero"`
}

// Beats says that an instance of an analyzer lives, and how, until ctx is done.
// Then it says that it does not.
func (b *Bus) Beats(ctx context.Context, beat func() Beat) {
	t := time.NewTicker(heartbeatTTL / 3)
	defer t.Stop()
	for {
		v := beat()
		body, _ := json.Marshal(v)
		subject := "$KV." + kvRegistry + "." + v.Analyzer + "." + v.Instance
		_ = b.nc.Publish(subject, body) // a lost one is made good by the next
		select {
		case <-ctx.Done():
			bye := nats.NewMsg(subject)
			bye.Header.Set("KV-Operation", "DEL")
			_ = b.nc.PublishMsg(bye) // if it is lost, the beat is forgotten soon
			return
		case <-t.C:
		}
	}
}

// An AnalyzerState is what is known of an analyzer.
type AnalyzerState struct {
	Name         string                `json:"name"`
	Registration *schemas.Registration `json:"registration,omitempty"` // none: nothing is owed
	Definition   *schemas.Definition   `json:"definition,omitempty"`   // of a command, or that it is removed
	Instances    []Beat                `json:"instances"`
	Waiting      uint64                `json:"waiting"` // tasks that nobody has taken
	Taken        int                   `json:"taken"`   // tasks that somebody has
}

// Analyzers lists the analyzers that are registered, defined or alive, by name.
func (b *Bus) Analyzers(ctx context.Context) ([]AnalyzerState, error) {
	all := map[string]*AnalyzerState{}
	state := func(name string) *AnalyzerState {
		if all[name] == nil {
			all[name] = &AnalyzerState{Name: name, Instances: []Beat{}}
		}
		return all[name]
	}
	st, err := b.js.Stream(ctx, streamLog)
	if err != nil {
		return nil, fmt.Errorf("look at the log: %w", err)
	}
	info, err := st.Info(ctx, jetstream.WithSubjectFilter(registry+"*"))
	if err != nil {
		return nil, fmt.Errorf("list the registry: %w", err)
	}
	for subject := range info.State.Subjects {
		name := strings.TrimPrefix(subject, registry)
		r, err := b.registration(ctx, name)
		if errors.Is(err, ErrNotFound) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("read the registration of %s: %w", name, err)
		}
		s := state(name)
		s.Registration = &r
		cons, err := st.Consumer(ctx, liveConsumerName(name))
		if err == nil {
			s.Waiting, s.Taken = cons.CachedInfo().NumPending, cons.CachedInfo().NumAckPending
		} else if !errors.Is(err, jetstream.ErrConsumerNotFound) {
			return nil, fmt.Errorf("look at the tasks of %s: %w", name, err)
		}
	}
	beats, err := values[Beat](ctx, b, kvRegistry)
	if err != nil {
		return nil, err
	}
	for _, key := range slices.Sorted(maps.Keys(beats)) {
		name, _, _ := strings.Cut(key, ".")
		if schemas.CheckAnalyzer(name) == nil {
			s := state(name)
			s.Instances = append(s.Instances, beats[key])
		}
	}
	defs, err := values[schemas.Definition](ctx, b, kvAnalyzers)
	if err != nil {
		return nil, err
	}
	for name, d := range defs {
		state(name).Definition = &d
	}
	var out []AnalyzerState
	for _, name := range slices.Sorted(maps.Keys(all)) {
		out = append(out, *all[name])
	}
	return out, nil
}

// values reads a bucket of JSON documents. What is none is passed over.
func values[T any](ctx context.Context, b *Bus, bucket string) (map[string]T, error) {
	out := map[string]T{}
	kv, err := b.js.KeyValue(ctx, bucket)
	if err != nil {
		return nil, fmt.Errorf("open bucket %s: %w", bucket, err)
	}
	w, err := kv.WatchAll(ctx, jetstream.IgnoreDeletes())
	if err != nil {
		return nil, fmt.Errorf("read bucket %s: %w", bucket, err)
	}
	defer func() { _ = w.Stop() }()
	for {
		select {
		case e := <-w.Updates():
			if e == nil {
				return out, nil
			}
			var v T
			if json.Unmarshal(e.Value(), &v) == nil {
				out[e.Key()] = v
			}
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// value reads a JSON document of a bucket, from the leader, for whoever may make
// no consumer. If the bucket has none of that key the error wraps [ErrNotFound];
// that there is no such bucket is another error.
func value[T any](ctx context.Context, b *Bus, bucket, key string) (T, error) {
	var v T
	m, err := b.lookupIn(ctx, "KV_"+bucket, lookup{Last: "$KV." + bucket + "." + key})
	switch {
	case errors.Is(err, ErrNotFound):
		if _, missing := b.js.Stream(ctx, "KV_"+bucket); missing != nil {
			return v, fmt.Errorf("open bucket %s: %w", bucket, missing)
		}
		return v, err
	case err != nil:
		return v, err
	case len(m.Data) == 0: // what is forgotten has no body
		return v, fmt.Errorf("%s in %s: %w", key, bucket, ErrNotFound)
	}
	if err := json.Unmarshal(m.Data, &v); err != nil {
		return v, fmt.Errorf("read %s in %s: %w", key, bucket, err)
	}
	return v, nil
}

// Define stores how an analyzer is run, or that it is not. Nodes that follow the
// definitions act on it.
func (b *Bus) Define(ctx context.Context, d schemas.Definition) error {
	if err := d.Check(); err != nil {
		return fmt.Errorf("define analyzer %.40q: %w", d.Name, err)
	}
	body, err := json.Marshal(d)
	if err != nil {
		return fmt.Errorf("encode definition: %w", err)
	}
	kv, err := b.js.KeyValue(ctx, kvAnalyzers)
	if err == nil {
		_, err = kv.Put(ctx, d.Name, body)
	}
	if err != nil {
		return fmt.Errorf("define analyzer %s: %w", d.Name, err)
	}
	return nil
}

// Definition returns how an analyzer is run, or that it is not. If nobody has
// said it the error wraps [ErrNotFound].
func (b *Bus) Definition(ctx context.Context, name string) (schemas.Definition, error) {
	if err := schemas.CheckAnalyzer(name); err != nil {
		return schemas.Definition{}, err
	}
	d, err := value[schemas.Definition](ctx, b, kvAnalyzers, name)
	if err != nil {
		return d, fmt.Errorf("read the definition of analyzer %s: %w", name, err)
	}
	return d, nil
}

// Undefine forgets a definition and reports whether there was one.
func (b *Bus) Undefine(ctx context.Context, name string) (bool, error) {
	if err := schemas.CheckAnalyzer(name); err != nil {
		return false, err
	}
	there, err := b.deleteKey(ctx, kvAnalyzers, name)
	if err != nil {
		return false, fmt.Errorf("forget analyzer %s: %w", name, err)
	}
	return there, nil
}

// deleteKey deletes a key of a bucket and reports whether it was there.
func (b *Bus) deleteKey(ctx context.Context, bucket, key string) (bool, error) {
	kv, err := b.js.KeyValue(ctx, bucket)
	if err != nil {
		return false, err
	}
	_, err = kv.Get(ctx, key)
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		return false, nil
	}
	if err == nil {
		err = kv.Delete(ctx, key)
	}
	return err == nil, err
}

// FollowDefinitions calls fn with all definitions, and again whenever one has
// changed, until ctx is done. One that cannot be read is passed over.
func (b *Bus) FollowDefinitions(ctx context.Context, fn func(map[string]schemas.Definition)) error {
	if b.stepwise {
		return b.pollDefinitions(ctx, fn)
	}
	kv, err := b.js.KeyValue(ctx, kvAnalyzers)
	if err != nil {
		return fmt.Errorf("follow the analyzers' definitions: %w", err)
	}
	w, err := kv.WatchAll(ctx)
	if err != nil {
		return fmt.Errorf("follow the analyzers' definitions: %w", err)
	}
	defer func() { _ = w.Stop() }()
	all, whole := map[string]schemas.Definition{}, false
	for {
		select {
		case e, ok := <-w.Updates():
			switch {
			case !ok:
				return fmt.Errorf("follow the analyzers' definitions: %w", errors.Join(ctx.Err(), errors.New("the watch has ended")))
			case e == nil:
				whole = true
			case e.Operation() != jetstream.KeyValuePut:
				delete(all, e.Key())
			default:
				var d schemas.Definition
				if json.Unmarshal(e.Value(), &d) == nil && d.Name == e.Key() && d.Check() == nil {
					all[e.Key()] = d
				}
			}
			if whole {
				fn(maps.Clone(all))
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// definitionsEvery is how often who may not watch looks for other definitions.
const definitionsEvery = 500 * time.Millisecond

// pollDefinitions is FollowDefinitions for who may not make consumers: whoever
// may make one says where the server sends what it has. What was removed and came
// back between two looks is shown as removed first.
func (b *Bus) pollDefinitions(ctx context.Context, fn func(map[string]schemas.Definition)) error {
	const stream, prefix = "KV_" + kvAnalyzers, "$KV." + kvAnalyzers + "."
	t := time.NewTicker(definitionsEvery)
	defer t.Stop()
	var before map[string]schemas.Definition
	for seen := uint64(0); ; {
		last, err := b.lookupIn(ctx, stream, lookup{Last: prefix + ">"})
		if err != nil && !errors.Is(err, ErrNotFound) {
			return fmt.Errorf("follow the analyzers' definitions: %w", err)
		}
		at := uint64(0)
		if err == nil {
			at = last.Sequence
		}
		if before == nil || at != seen {
			all, back := map[string]schemas.Definition{}, map[string]schemas.Definition{}
			err := b.subjects(ctx, stream, prefix+">", func(subject string, _ uint64) error {
				m, err := b.lookupIn(ctx, stream, lookup{Last: subject})
				if errors.Is(err, ErrNotFound) {
					return nil
				}
				if err != nil {
					return err
				}
				name := strings.TrimPrefix(subject, prefix)
				var d schemas.Definition // what is forgotten has no body
				if json.Unmarshal(m.Data, &d) == nil && d.Name == name && d.Check() == nil {
					all[name] = d
				}
				if before != nil && m.Sequence > seen && reflect.DeepEqual(all[name], before[name]) {
					back[name] = schemas.Definition{Name: name, Removed: true}
				}
				return nil
			})
			if err != nil {
				return fmt.Errorf("follow the analyzers' definitions: %w", err)
			}
			seen, before = at, all
			if len(back) > 0 {
				gone := maps.Clone(all)
				maps.Copy(gone, back)
				fn(gone)
			}
			fn(maps.Clone(all))
		}
		select {
		case <-t.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
