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

	Parallel int   // analyses at once
	Memory   int64 // of a guest, bytes
	Verbose  bool

	Only       []string // analyzers that run here; none: all
	Unconfined bool     // commands may run where nothing keeps them from the network
	again      []string // arguments with which this program was started; nil: it is petri

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

// address is how to reach the server.
func (c *Config) address() (bus.Address, error) {
	if c.NATS != "" {
		return bus.Address{URL: c.NATS, Creds: c.Creds, CA: c.CA}, nil
	}
	return bus.ReadAddress(c.Data)
}

// Connect connects to the server that runs. If none does, the error wraps
// [ErrNotRunning].
func (c *Config) Connect(ctx context.Context, name string) (*bus.Bus, error) {
	a, err := c.address()
	if errors.Is(err, bus.ErrNotFound) {
		return nil, fmt.Errorf("%w on %s (start it: petri up)", ErrNotRunning, c.Data)
	}
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	b, err := bus.Connect(ctx, a, name)
	if err != nil && c.NATS == "" {
		return nil, fmt.Errorf("%w on %s: %w (start it: petri up)", ErrNotRunning, c.Data, err)
	}
	return b, err
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
