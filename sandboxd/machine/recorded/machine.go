// SPDX-License-Identifier: Apache-2.0

package recorded

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/petri-sandbox/petri/sandboxd/machine"
	"github.com/petri-sandbox/petri/schemas"
)

// Backend is what a machine's description says of one of these.
const Backend = "recorded"

// ErrNotRecorded says that the recording has no answer to what was asked.
var ErrNotRecorded = errors.New("the recording does not have it")

// Machine implements [machine.Machine].
type Machine struct {
	r        *Recording
	observer machine.Observer
	clock    *clock

	ctx    context.Context // of what plays
	cancel context.CancelFunc
	plays  sync.WaitGroup

	mu     sync.Mutex
	state  state
	execs  []schemas.Exec // not asked for yet
	missed int            // steps that did not come before the end
}

// state is what a machine has come to.
type state int

const (
	defined state = iota
	up
	ran // the sample has been started
	gone
)

var (
	_ machine.Machine       = (*Machine)(nil)
	_ machine.Screenshotter = (*Machine)(nil)
)

// New returns a machine that replays r speed times as fast as it was; 0 waits
// for nothing.
func New(r *Recording, speed float64, o machine.Observer) *Machine {
	m := &Machine{r: r, observer: o, clock: newClock(speed), execs: slices.Clone(r.execs)}
	m.ctx, m.cancel = context.WithCancel(context.Background())
	return m
}

// enter changes the state, if it is the one that it must be.
func (m *Machine) enter(from, to state) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case m.state == gone:
		return machine.ErrGone
	case m.state != from:
		return fmt.Errorf("%w: a machine is started once, and runs one sample", ErrNotRecorded)
	}
	m.state = to
	return nil
}

// living is an error unless the machine is up.
func (m *Machine) living() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.state != up && m.state != ran {
		return machine.ErrGone
	}
	return nil
}

// Poweron implements [machine.Machine]. The identity is the recorded one: what
// was recorded shows it.
func (m *Machine) Poweron(context.Context, machine.Identity) (machine.Boot, error) {
	if err := m.enter(defined, up); err != nil {
		return machine.Boot{}, err
	}
	boot := m.r.boot
	boot.Machine.Backend, boot.Version = Backend, "recording of "+m.r.Analysis
	boot.Template, boot.Isolation, boot.Took = nil, nil, 0
	m.play(m.r.before)
	return boot, nil
}

// play reports steps at their time.
func (m *Machine) play(steps []step) {
	begin := m.clock.now()
	m.plays.Add(1)
	go func() {
		defer m.plays.Done()
		for i, s := range steps {
			err := m.clock.wait(m.ctx, begin+s.at)
			if err == nil {
				err = m.report(s)
			}
			if err != nil {
				m.mu.Lock()
				m.missed += len(steps) - i
				m.mu.Unlock()
				return
			}
		}
	}()
}

// report tells the observer of one step.
func (m *Machine) report(s step) error {
	if s.fact != nil {
		e := *s.fact
		e.Time = time.Now()
		if e.Off != nil {
			off := *e.Off // whoever takes it may change it
			e.Off = &off
		}
		m.observer.Event(e)
		return nil
	}
	if s.object == nil {
		m.observer.Data(s.src, slices.Clone(s.data))
		return nil
	}
	err := m.object(m.ctx, *s.object, func(p []byte) error {
		m.observer.Data(s.src, p)
		return m.ctx.Err()
	})
	if err != nil && m.ctx.Err() == nil {
		m.observer.Event(machine.Event{Time: time.Now(), Fault: fmt.Sprintf("read what was recorded of %s: %v", s.src, err)})
	}
	return err
}

// object reads what the store has, in pieces that are f's own.
func (m *Machine) object(ctx context.Context, d schemas.Digest, f func([]byte) error) error {
	in, _, err := m.r.objects.Open(ctx, d)
	if err != nil {
		return err
	}
	defer in.Close()
	for {
		p := make([]byte, 64<<10)
		n, err := in.Read(p)
		if n > 0 {
			if ferr := f(p[:n]); ferr != nil {
				return ferr
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// Pause implements [machine.Machine].
func (m *Machine) Pause(context.Context) error {
	if err := m.living(); err != nil {
		return err
	}
	m.clock.stop()
	return nil
}

// Resume implements [machine.Machine].
func (m *Machine) Resume(context.Context) error {
	if err := m.living(); err != nil {
		return err
	}
	m.clock.goOn()
	return nil
}

// Restart implements [machine.Machine]: nothing has been recorded of one.
func (m *Machine) Restart(context.Context, machine.Identity) (machine.Boot, error) {
	return machine.Boot{}, fmt.Errorf("restart: %w", ErrNotRecorded)
}

// Shutdown implements [machine.Machine]. What a guest sends last it sends now,
// however long before its end it was recorded.
func (m *Machine) Shutdown(ctx context.Context) error {
	if err := m.living(); err != nil {
		return nil // it is off
	}
	m.clock.rush()
	done := make(chan struct{})
	go func() {
		m.plays.Wait()
		close(done)
	}()
	select {
	case <-done:
	case <-ctx.Done():
		return fmt.Errorf("wait for the end of the recording: %w", ctx.Err())
	}
	return m.Close()
}

// Poweroff implements [machine.Machine].
func (m *Machine) Poweroff(context.Context) error { return m.Close() }

// Close implements [machine.Machine].
func (m *Machine) Close() error {
	m.mu.Lock()
	was := m.state
	m.state = gone
	m.mu.Unlock()
	m.cancel()
	m.plays.Wait()
	if was != up && was != ran {
		return nil
	}
	missed := m.missed
	if was == up { // the sample was never started
		missed += len(m.r.after)
	}
	for _, c := range m.r.ends {
		if missed > 0 && c.Status == schemas.StatusWhole { // else it has its reason
			c.Status, c.Reason = schemas.StatusPartial, "the recording was not played to its end"
		}
		m.observer.End(c.Source, c)
	}
	return nil
}

// Run implements [machine.Machine]. The sample is the recorded one, or the
// recording is not its.
func (m *Machine) Run(ctx context.Context, r machine.Run, sample *os.File) (machine.Started, error) {
	if err := m.living(); err != nil {
		return machine.Started{}, err
	}
	if m.r.refused != nil {
		refused := *m.r.refused
		return machine.Started{}, &refused
	}
	if m.r.started == nil {
		return machine.Started{}, fmt.Errorf("run: %w", ErrNotRecorded)
	}
	if err := m.enter(up, ran); err != nil {
		return machine.Started{}, err
	}
	m.play(m.r.after)
	return *m.r.started, nil
}

// Exec implements [machine.Machine]: each recorded command answers once.
func (m *Machine) Exec(_ context.Context, e machine.Exec) (schemas.Exec, error) {
	if err := m.living(); err != nil {
		return schemas.Exec{}, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for i, x := range m.execs {
		if slices.Equal(x.Command, e.Command) {
			m.execs = slices.Delete(m.execs, i, i+1)
			return x, nil
		}
	}
	return schemas.Exec{}, fmt.Errorf("exec %q: %w", e.Command, ErrNotRecorded)
}

// Collect implements [machine.Machine].
func (m *Machine) Collect(ctx context.Context, c machine.Collect) (machine.Collected, error) {
	if err := m.living(); err != nil {
		return machine.Collected{}, err
	}
	sum := machine.Collected{Omitted: m.r.files.Omitted}
	var total int64
	for _, f := range m.r.files.Files {
		if sum.Listed >= c.MaxList {
			sum.Omitted++
			continue
		}
		sum.Listed++
		if f.Stored && (f.SHA256 == nil || f.Size > c.MaxFile || total+f.Size > c.MaxTotal || sum.Sent >= c.MaxFiles) {
			f.Stored, f.Reason = false, "it is over the limits of this analysis"
		}
		w := m.observer.File(f)
		var err error
		if f.Stored {
			sum.Sent++
			total += f.Size
			err = m.object(ctx, *f.SHA256, func(p []byte) error {
				_, err := w.Write(p)
				return err
			})
		}
		w.Close(m.cut(f), err)
	}
	return sum, ctx.Err()
}

// cut is how many bytes of a file were left out.
func (m *Machine) cut(f schemas.DroppedFile) int64 {
	if f.SHA256 == nil {
		return 0
	}
	return m.r.cuts[*f.SHA256]
}

// Flush implements [machine.Machine]: what was traced by now has come.
func (m *Machine) Flush(context.Context) error { return m.living() }

// DumpMemory implements [machine.Machine].
func (m *Machine) DumpMemory(ctx context.Context, f *os.File) error {
	return m.copy(ctx, m.r.dump, f)
}

// Screenshot implements [machine.Screenshotter].
func (m *Machine) Screenshot(ctx context.Context, f *os.File) error {
	return m.copy(ctx, m.r.picture, f)
}

func (m *Machine) copy(ctx context.Context, d *schemas.Digest, f *os.File) error {
	if err := m.living(); err != nil {
		return err
	}
	if d == nil {
		return ErrNotRecorded
	}
	return m.object(ctx, *d, func(p []byte) error {
		_, err := f.Write(p)
		return err
	})
}
