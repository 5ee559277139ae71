// SPDX-License-Identifier: Apache-2.0

package fleet

import (
	"context"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/petri-sandbox/petri/sandboxd"
	"github.com/petri-sandbox/petri/sandboxd/catalogue"
	"github.com/petri-sandbox/petri/sandboxd/machine"
	"github.com/petri-sandbox/petri/sandboxd/machine/supervisor"
	"github.com/petri-sandbox/petri/schemas"
)

// Pool says how many machines of each guest wait for an analysis. A pointer to
// one is a flag's value.
type Pool map[string]int

// DefaultPool is a sandbox' that is not told otherwise.
func DefaultPool() Pool { return Pool{catalogue.Default: 1} }

// maxPool bounds the machines of one guest that wait.
const maxPool = 100

// Set reads what String writes: amd64=2,mipsel=1, or 0 for none. A number alone
// is that of the usual guest.
func (p *Pool) Set(text string) error {
	if _, err := strconv.Atoi(text); err == nil {
		text = catalogue.Default + "=" + text
	}
	pool := Pool{}
	for _, word := range strings.Split(text, ",") {
		name, number, _ := strings.Cut(word, "=")
		if _, err := catalogue.Lookup(name); err != nil {
			return err
		}
		n, err := strconv.Atoi(number)
		if err != nil || n < 0 || n > maxPool {
			return fmt.Errorf("%q is no number of machines from 0 to %d, such as amd64=1", word, maxPool)
		}
		if _, twice := pool[name]; twice {
			return fmt.Errorf("%s has two numbers of machines", name)
		}
		pool[name] = n
	}
	maps.DeleteFunc(pool, func(_ string, n int) bool { return n == 0 })
	*p = pool
	return nil
}

// Type implements pflag.Value.
func (*Pool) Type() string { return "guest=n,…" }

func (p Pool) String() string {
	var words []string
	for _, name := range slices.Sorted(maps.Keys(p)) {
		words = append(words, name+"="+strconv.Itoa(p[name]))
	}
	if len(words) == 0 {
		return "0"
	}
	return strings.Join(words, ",")
}

// waiting is a machine that waits for an analysis: its guest stands still, and
// has no identity yet.
type waiting struct {
	*owned
	key string // of what it is made of
	out *handover
}

// handover is what a machine reports to before it has an analysis, and the way
// from there to the analysis' own [machine.Observer].
type handover struct {
	spoilt func() // called once; may not block

	mu   sync.RWMutex
	to   machine.Observer // nil: it waits
	kept []kept           // data, until then
	size int
	bad  bool // what it reported is no good beginning of an analysis
}

type kept struct {
	src schemas.Source
	p   []byte
}

// maxKept bounds what a waiting machine may say: a console's few lines and the
// head of a capture.
const maxKept = 64 << 10

var _ machine.Observer = (*handover)(nil)

// observer returns whom the machine belongs to. If nobody yet, f is called
// alone, and a machine that it finds bad is spoilt.
func (h *handover) observer(f func()) machine.Observer {
	h.mu.RLock()
	to := h.to
	h.mu.RUnlock()
	if to != nil {
		return to
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.to == nil && !h.bad {
		if f(); h.bad {
			h.kept = nil
			h.spoilt()
		}
	}
	return h.to
}

// Event implements [machine.Observer]. There is none that a machine that waits
// could report and still be good.
func (h *handover) Event(e machine.Event) {
	if to := h.observer(func() { h.bad = true }); to != nil {
		to.Event(e)
	}
}

// Data implements [machine.Observer].
func (h *handover) Data(src schemas.Source, p []byte) {
	to := h.observer(func() {
		h.kept = append(h.kept, kept{src, slices.Clone(p)})
		h.size += len(p)
		h.bad = h.size > maxKept
	})
	if to != nil {
		to.Data(src, p)
	}
}

// End implements [machine.Observer].
func (h *handover) End(src schemas.Source, c schemas.SourceCoverage) {
	if to := h.observer(func() { h.bad = true }); to != nil {
		to.End(src, c)
	}
}

// File implements [machine.Observer].
func (h *handover) File(f schemas.DroppedFile) machine.FileWriter {
	if to := h.observer(func() { h.bad = true }); to != nil {
		return to.File(f)
	}
	return nil
}

// give hands the machine over, with what it has said so far. It reports false
// if it is no good.
func (h *handover) give(o machine.Observer) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.bad {
		return false
	}
	for _, k := range h.kept {
		o.Data(k.src, k.p)
	}
	h.to, h.kept = o, nil
	return true
}

func (h *handover) good() bool {
	h.mu.RLock()
	defer h.mu.RUnlock()
	return !h.bad
}

// poolCheck is how soon a change is seen that nobody tells of: of an image, of
// QEMU, of the host's free memory.
const poolCheck = 20 * time.Second

// standbyTime is how long a guest may take to stand by, a template's making
// included.
const standbyTime = 5 * time.Minute

// KeepPool keeps machines waiting until ctx is done, and ends those that then
// still do. It begins when [Fleet.Reap] has been called. One KeepPool runs at a
// time.
//
// A machine is added while fewer run than the host has CPUs, so that those who
// wait cost those who run nothing, and while the host keeps a quarter of its
// memory free even if the machine takes all that it may.
func (f *Fleet) KeepPool(ctx context.Context) {
	select {
	case <-f.reaped:
	case <-ctx.Done():
		return
	}
	defer f.drain()
	tick := time.NewTicker(poolCheck)
	defer tick.Stop()
	for {
		for _, arch := range slices.Sorted(maps.Keys(f.opts.Pool)) {
			f.refill(ctx, arch, f.opts.Pool[arch])
		}
		select {
		case <-f.changed:
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// note wakes [Fleet.KeepPool].
func (f *Fleet) note() {
	select {
	case f.changed <- struct{}{}:
	default: // it is about to look
	}
}

// refill drops the machines of a guest that are no good any more, and starts
// others until enough wait or there is no room.
func (f *Fleet) refill(ctx context.Context, arch string, want int) {
	log := f.opts.Slog.With("guest", arch)
	for ctx.Err() == nil {
		b, err := f.base(ctx, arch)
		key := ""
		if err == nil {
			key = b.key(cpuModel())
		}
		n := f.sift(arch, key)
		if err != nil {
			if ctx.Err() == nil {
				f.say(arch, func() { log.Warn("no machine can wait", "error", err) })
			}
			return
		}
		spare, err := f.spare(b.spec.Memory)
		switch {
		case err != nil:
			f.say(arch, func() { log.Warn("no machine can wait", "error", err) })
			return
		case spare == scarce && n > 0:
			log.Info("the host's memory is scarce: ending a machine that waits")
			f.drop(arch, 1)
			return
		case n >= want || f.busy():
			return
		case spare != ample:
			f.say(arch, func() { log.Info("no memory for a machine that waits") })
			return
		}
		w, err := f.standby(ctx, b, key)
		if err != nil {
			if ctx.Err() == nil {
				f.say(arch, func() { log.Warn("no machine can wait", "error", err) })
			}
			return
		}
		f.mu.Lock()
		f.pool[arch] = append(f.pool[arch], w)
		delete(f.said, arch)
		f.mu.Unlock()
		log.Debug("a machine waits")
	}
}

// say logs why a guest's machines do not wait: once until one does.
func (f *Fleet) say(arch string, log func()) {
	f.mu.Lock()
	said := f.said[arch]
	f.said[arch] = true
	f.mu.Unlock()
	if !said {
		log()
	}
}

// busy reports whether every CPU of the host has a machine that runs.
func (f *Fleet) busy() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.running >= runtime.NumCPU()
}

// standby starts a machine that waits.
func (f *Fleet) standby(ctx context.Context, b base, key string) (*waiting, error) {
	ctx, cancel := context.WithTimeout(ctx, standbyTime)
	defer cancel()
	spec := b.spec
	spec.Mark, spec.Pcap, spec.Fallback = f.Mark("pool"), sandboxd.DefaultPcap, b.cpu.Cold
	var t *template
	if b.cpu.Cold == "" {
		var err error
		if t, err = f.template(ctx, b); err != nil {
			return nil, err
		}
	}
	out := &handover{spoilt: f.note}
	own, err := f.launch(ctx, b, spec, t, out)
	if err != nil {
		return nil, err
	}
	if err := own.vm.Standby(ctx); err != nil {
		_ = own.Close()
		return nil, err
	}
	return &waiting{owned: own, key: key, out: out}, nil
}

// sift drops the machines of a guest that have died or are made of something
// else than key names, and returns how many are left.
func (f *Fleet) sift(arch, key string) int {
	f.mu.Lock()
	var bad []*waiting
	f.pool[arch] = slices.DeleteFunc(f.pool[arch], func(w *waiting) bool {
		if w.key == key && w.out.good() {
			return false
		}
		bad = append(bad, w)
		return true
	})
	n := len(f.pool[arch])
	f.mu.Unlock()
	closeAll(bad)
	return n
}

// drop ends n machines of a guest that wait.
func (f *Fleet) drop(arch string, n int) {
	f.mu.Lock()
	n = min(n, len(f.pool[arch]))
	bad := slices.Clone(f.pool[arch][:n])
	f.pool[arch] = slices.Delete(f.pool[arch], 0, n)
	f.mu.Unlock()
	closeAll(bad)
}

// drain ends all that wait.
func (f *Fleet) drain() {
	f.mu.Lock()
	var all []*waiting
	for _, list := range f.pool {
		all = append(all, list...)
	}
	clear(f.pool)
	f.mu.Unlock()
	closeAll(all)
}

func closeAll(list []*waiting) {
	var wg sync.WaitGroup
	for _, w := range list {
		wg.Add(1)
		go func() {
			defer wg.Done()
			_ = w.Close()
		}()
	}
	wg.Wait()
}

// claim takes a machine out of the pool that is made of what key names, and
// gives it to o. There may be none.
func (f *Fleet) claim(arch, key string, o machine.Observer) *owned {
	defer f.note() // one is wanted, or those that are no good can go
	for {
		w := f.take(arch, key)
		if w == nil {
			return nil
		}
		// Not under the fleet's lock: o may block, and others end their machines.
		if w.out.give(o) {
			return w.owned
		}
		_ = w.Close()
	}
}

// take takes a good machine out of the pool that is made of what key names.
func (f *Fleet) take(arch, key string) *waiting {
	f.mu.Lock()
	defer f.mu.Unlock()
	i := slices.IndexFunc(f.pool[arch], func(w *waiting) bool { return w.key == key && w.out.good() })
	if i < 0 {
		return nil
	}
	w := f.pool[arch][i]
	f.pool[arch] = slices.Delete(f.pool[arch], i, i+1)
	return w
}

// Waiting counts the machines of a guest that wait.
func (f *Fleet) Waiting(arch string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.pool[arch])
}

// owned is a machine with what it has of the fleet's, which it gives back when
// it is gone.
type owned struct {
	machine.Machine
	vm   *supervisor.Machine
	free func()
	once sync.Once
}

func (o *owned) Close() error {
	err := o.Machine.Close()
	o.once.Do(o.free)
	return err
}
