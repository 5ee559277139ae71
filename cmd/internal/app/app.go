// SPDX-License-Identifier: Apache-2.0

// Package app wires Petri's parts to each other: the bus to what sandboxd,
// analyzers and reporters ask for, and the daemons to one process tree. It is
// what the programs in cmd have in common, and holds no logic of its own.
package app

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/petri-sandbox/petri/bus"
	"github.com/petri-sandbox/petri/bus/auth"
	"github.com/petri-sandbox/petri/sandboxd/fleet"
	"github.com/petri-sandbox/petri/schemas"
)

// Version of Petri.
const Version = "0.1.0"

// Config is what all programs agree on.
type Config struct {
	Data   string        // directory of the server's data, the sandbox and the credentials
	Cache  string        // directory of guests' images; may be thrown away
	NATS   string        // URL of a server of the user's own; empty: the embedded one
	Creds  string        // file of the credentials for it
	CA     string        // file of the authority of its certificate
	Listen string        // address of the embedded server; empty: a free port
	Sync   time.Duration // how often the embedded server writes to the disk; 0: always
	Accel  string        // auto, kvm or tcg
	Guestd string        // directory of the guest agents; empty: beside this program

	Parallel int        // analyses at once
	Memory   int64      // of a guest, bytes
	Pool     fleet.Pool // machines that wait
	Verbose  bool

	Recorded []string // .petri files that machines replay; none: machines are QEMU's
	Speed    float64  // of their replay, in times the recorded; 0: no waiting

	Only       []string // analyzers that run here; none: all
	Unconfined bool     // commands may run where nothing keeps them from the network
	again      []string // arguments with which this program was started; nil: it is petri

	Part         Part          // of the bus, which runs here
	Replicas     int           // copies of everything on a cluster; 0: 3
	Queue        int64         // submissions that may wait or be in work; 0: as there are
	ArchiveAfter time.Duration // how long an ended analysis stays in the log; 0: for ever

	// Watermarks say from when on a disk or a server counts as full.
	Watermarks bus.Watermarks
	measure    func(dir string) (bus.Gauge, error) // of tests; nil: the file system
}

// DefaultQueue is how many submissions may wait.
const DefaultQueue = 100_000

// DefaultArchiveAfter is how long an ended analysis stays in the log: as long
// as somebody may be expected to come back to it.
const DefaultArchiveAfter = 30 * 24 * time.Hour

// PoolUsage says what the flag of a pool does.
const PoolUsage = "machines that wait, started, for an analysis: of each guest so many, such as amd64=2,mipsel=1; 0: none"

// Flags of what starts a sandbox.
const (
	RecordedUsage = "replay these .petri files instead of running guests: their samples are taken, and no others"
	SpeedUsage    = "of what is replayed, in times the recorded; 0: without waiting"
)

// DefaultData is where data is kept: /var/lib/petri for root, else below the
// user's own data directory (XDG Base Directory Specification).
func DefaultData() string {
	if os.Geteuid() == 0 {
		return "/var/lib/petri"
	}
	if d := os.Getenv("XDG_DATA_HOME"); d != "" {
		return filepath.Join(d, "petri")
	}
	return filepath.Join(home(), ".local", "share", "petri")
}

func home() string {
	if h, err := os.UserHomeDir(); err == nil {
		return h
	}
	return "."
}

// guestdDir is where the agents lie: beside the program, or in lib/petri.
func (c *Config) guestdDir() string {
	if c.Guestd != "" {
		return c.Guestd
	}
	exe, err := os.Executable()
	if err != nil {
		return "."
	}
	dir := filepath.Dir(exe)
	if lib := filepath.Join(dir, "..", "lib", "petri"); fileExists(filepath.Join(lib, "guestd-amd64")) {
		return lib
	}
	return dir
}

func fileExists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// address is how a role's user reaches the server. The credentials that were
// given are used as they are; the embedded server's lie in the data directory.
func (c *Config) address(r auth.Role, analyzer string) (bus.Address, error) {
	if c.NATS != "" {
		return bus.Address{URL: c.NATS, Creds: c.Creds, CA: c.CA}, nil
	}
	a, err := bus.ReadAddress(c.Data)
	if err == nil {
		a.Creds = c.Creds
	}
	if err == nil && a.Creds == "" {
		a.Creds, err = auth.Credentials(c.Data, r, analyzer)
	}
	return a, err
}

// Connect connects to the server that runs, as who types commands. If none does,
// the error wraps [ErrNotRunning].
func (c *Config) Connect(ctx context.Context, name string) (*bus.Bus, error) {
	return c.connectAs(ctx, auth.Admin, "", name)
}

// connectAs is Connect as the user of a role; analyzer is the name of one.
func (c *Config) connectAs(ctx context.Context, r auth.Role, analyzer, name string) (*bus.Bus, error) {
	a, err := c.address(r, analyzer)
	if errors.Is(err, bus.ErrNotFound) {
		return nil, fmt.Errorf("%w on %s (start it: petri up)", ErrNotRunning, c.Data)
	}
	if err != nil {
		return nil, err
	}
	if c.NATS != "" { // a cluster may be choosing a leader
		return bus.Connect(ctx, a, name)
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	b, err := bus.Connect(ctx, a, name)
	if err != nil {
		return nil, fmt.Errorf("%w on %s: %w (start it: petri up)", ErrNotRunning, c.Data, err)
	}
	return b, err
}

// employ is connectAs for a daemon, which may be started before its server.
func (c *Config) employ(ctx context.Context, r auth.Role, analyzer, name string, log *slog.Logger) (*bus.Bus, error) {
	if c.NATS == "" { // whoever has started this process has started the server
		return c.connectAs(ctx, r, analyzer, name)
	}
	return awaited(ctx, log, func() (*bus.Bus, error) { return c.connectAs(ctx, r, analyzer, name) })
}

// Times between two looks for a server, and between two words about that.
const (
	awaitEvery = time.Second
	awaitSay   = time.Minute
)

// awaited connects until there is a server, or ctx is done. That a server wants no
// part of us is an error at once.
func awaited(ctx context.Context, log *slog.Logger, connect func() (*bus.Bus, error)) (*bus.Bus, error) {
	for said := (time.Time{}); ; {
		b, err := connect()
		if !errors.Is(err, bus.ErrUnreachable) || ctx.Err() != nil {
			return b, err
		}
		if time.Since(said) >= awaitSay {
			log.Warn("waiting for a server", "error", err)
			said = time.Now()
		}
		select {
		case <-time.After(awaitEvery):
		case <-ctx.Done():
			return nil, fmt.Errorf("%w: %w", ctx.Err(), err)
		}
	}
}

// ErrNotRunning says that no Petri runs on a data directory.
var ErrNotRunning = errors.New("no Petri runs")

// Logger writes for people, one line an entry.
func Logger(w io.Writer, verbose bool) *slog.Logger {
	level := slog.LevelInfo
	if verbose {
		level = slog.LevelDebug
	}
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: level}))
}

// artifactCaps bound what one artifact of a kind may have, in bytes.
var artifactCaps = bus.Caps{
	schemas.KindSample: 100 << 20,
	schemas.KindMemory: 16 << 30,
	"template-part":    16 << 30,
}
