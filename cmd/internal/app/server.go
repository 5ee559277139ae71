// SPDX-License-Identifier: Apache-2.0

package app

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"

	"golang.org/x/sync/errgroup"

	"github.com/petri-sandbox/petri/bus"
)

// A Part is what one process of the bus does; empty is all of it.
type Part string

// The parts. Those but the core are for credentials that allow nothing else.
const (
	PartCore     Part = "core"     // streams, registrar, desk, runs, deletions, the projection for lists
	PartClerk    Part = "clerk"    // commits what analyzers hand in
	PartArchiver Part = "archiver" // moves ended analyses out of the log
)

// Parts lists them.
func Parts() []Part { return []Part{PartCore, PartClerk, PartArchiver} }

func (p Part) has(q Part) bool { return p == "" || p == q }

// RunBus is the bus' own process, or a part of it: the core, with the embedded
// server unless there is one of the user's, the clerk, and the archiver. It runs
// until ctx is done; ready is called when clients may connect.
func RunBus(ctx context.Context, c Config, log *slog.Logger, ready func()) error {
	b, limits, stop, err := openBus(ctx, c, log)
	if errors.Is(err, context.Canceled) { // it has waited for a server
		return nil
	}
	if err != nil {
		return err
	}
	defer stop()
	b.LogTo(log)
	g, ctx := errgroup.WithContext(ctx)
	if c.Part.has(PartCore) {
		limits.Jobs, limits.Replicas = c.Queue, c.Replicas
		if err := b.Reconcile(ctx, limits.Limits); err != nil {
			return err
		}
		if err := b.OpenEndings(ctx, reporterName); err != nil {
			return err
		}
		if limits.announce != nil {
			if err := limits.announce(); err != nil {
				return err
			}
		}
		runCore(ctx, g, c, b, limits, log)
	}
	if c.Part.has(PartClerk) {
		g.Go(func() error { return bus.NewClerk(b, log).Run(ctx) })
	}
	if c.Part.has(PartArchiver) {
		g.Go(func() error {
			return bus.NewArchiver(b, bus.ArchiverOptions{After: c.ArchiveAfter, Log: log}).Run(ctx)
		})
	}
	ready()
	err = g.Wait()
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

func runCore(ctx context.Context, g *errgroup.Group, c Config, b *bus.Bus, limits assets, log *slog.Logger) {
	g.Go(func() error { return bus.NewRegistrar(b, log).Run(ctx) })
	g.Go(func() error { return b.AnswerLost(ctx, log) })
	g.Go(func() error { return bus.NewDesk(b, log).Run(ctx) })
	g.Go(func() error { return b.Project(ctx, log) })
	g.Go(func() error { return b.Undertake(ctx, log) })
	g.Go(func() error {
		disk := c.disk
		if c.NATS != "" { // it is elsewhere
			disk = nil
		}
		return b.KeepMeasuring(ctx, c.Watermarks, disk, log)
	})
	g.Go(func() error { return b.DriveRuns(ctx, log) })
	g.Go(func() error { return b.KeepClean(ctx, log) })
	g.Go(func() error {
		select {
		case err := <-limits.failed: // whoever started this process starts it anew
			return fmt.Errorf("the log cannot be written: %w", err)
		case <-ctx.Done():
			return ctx.Err()
		}
	})
}

// assets is how the server's assets are made.
type assets struct {
	bus.Limits
	announce func() error // that they are there; nil where nobody looks for it
	failed   <-chan error // the server's
}

func openBus(ctx context.Context, c Config, log *slog.Logger) (*bus.Bus, assets, func(), error) {
	if c.NATS != "" {
		b, err := awaited(ctx, log, func() (*bus.Bus, error) {
			return bus.Connect(ctx, bus.Address{URL: c.NATS, Creds: c.Creds, CA: c.CA}, cmp.Or(string(c.Part), "bus"))
		})
		if err != nil {
			return nil, assets{}, nil, err
		}
		return b, assets{}, b.Close, nil
	}
	s, err := bus.StartServer(c.Data, bus.ServerOptions{Listen: c.Listen, Sync: c.Sync, Analyzers: Builtin(), Log: log})
	if err != nil {
		return nil, assets{}, nil, err
	}
	b, err := s.Connect(ctx, "bus")
	if err != nil {
		s.Close()
		return nil, assets{}, nil, err
	}
	announce := func() error { return errors.Join(s.SyncAssets(), s.Announce()) }
	return b, assets{Limits: s.Limits(), announce: announce, failed: s.Failed()}, func() {
		b.Close()
		s.Close()
	}, nil
}

// OpenLog opens the log and the store of a data directory on which nothing
// runs, for reading: with a server in this process.
func (c *Config) OpenLog(ctx context.Context) (*bus.Bus, func(), error) {
	if _, err := os.Stat(filepath.Join(c.Data, "jetstream")); err != nil {
		return nil, nil, fmt.Errorf("there is no log on %s yet (petri run FILE makes one; another directory: --data DIR)", c.Data)
	}
	s, err := bus.StartServer(c.Data, bus.ServerOptions{})
	if err != nil {
		return nil, nil, err
	}
	b, err := s.Connect(ctx, "reader")
	if err != nil {
		s.Close()
		return nil, nil, err
	}
	return b, func() {
		b.Close()
		s.Close()
	}, nil
}

// OpenStore opens the log and the store of a data directory on which nothing
// runs, for writing, and makes them if they are not there.
func (c *Config) OpenStore(ctx context.Context) (*bus.Bus, func(), error) {
	if err := os.MkdirAll(c.Data, 0o700); err != nil {
		return nil, nil, fmt.Errorf("make the data directory: %w (choose another: --data DIR)", err)
	}
	s, err := bus.StartServer(c.Data, bus.ServerOptions{})
	if err != nil {
		return nil, nil, err
	}
	b, err := s.Connect(ctx, "petri")
	if err != nil {
		s.Close()
		return nil, nil, err
	}
	if err := errors.Join(b.Reconcile(ctx, s.Limits()), s.SyncAssets()); err != nil {
		b.Close()
		s.Close()
		return nil, nil, err
	}
	return b, func() {
		b.Close()
		s.Close()
	}, nil
}

// Import reads a .petri file into the archive; see [bus.Bus.Import]. It stops
// where the disk would have no room left for the log.
func (c *Config) Import(ctx context.Context, b *bus.Bus, tenant string, r io.Reader) (bus.Imported, error) {
	if c.NATS == "" { // of another's disk nothing is known
		r = &roomyReader{r: r, dir: c.Data}
	}
	return b.Import(ctx, r, bus.ImportOptions{Tenant: tenant, Caps: artifactCaps})
}

// roomyReader reads what is to be stored on a disk while there is room.
type roomyReader struct {
	r    io.Reader
	dir  string
	left int64 // bytes until it looks again
}

func (r *roomyReader) Read(p []byte) (int, error) {
	if r.left <= 0 {
		free, err := FreeSpace(r.dir)
		if err != nil {
			return 0, err
		}
		if free < 2*diskReserve {
			return 0, fmt.Errorf("%s has %d MiB free, of which %d MiB are kept for the log (make room, or choose another directory: --data DIR)", r.dir, free>>20, 2*diskReserve>>20)
		}
		r.left = diskReserve / 4
	}
	n, err := r.r.Read(p)
	r.left -= int64(n)
	return n, err
}
