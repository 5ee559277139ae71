// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"golang.org/x/sys/unix"

	"github.com/petri-sandbox/petri/bus/auth"
)

// Address is how to reach a server, and as whom: what the file nats.json of a
// data directory holds, with the credentials of who types commands.
type Address struct {
	URL   string `json:"url"`
	Creds string `json:"creds,omitempty"` // file of a user's credentials
	PID   int    `json:"pid,omitempty"`
	CA    string `json:"-"` // file of the authority that the server's certificate is from

	dir string // whose server it is: the next one there may listen elsewhere
}

// ServerOptions are for [StartServer]. The zero value listens on a free port of
// 127.0.0.1.
type ServerOptions struct {
	Listen string // host:port; the host must be a loopback address
	// Sync is how often what was written is brought to the disk; 0 is before it
	// is acknowledged. With anything else a power cut, not a crash, loses that
	// much of what was acknowledged.
	Sync time.Duration
	// Analyzers are those that Petri brings, for the credentials of the process
	// that runs them; nil leaves those as they are.
	Analyzers []string
	Log       *slog.Logger
}

// A Server is an embedded nats-server with its data in one directory. Unless
// [ServerOptions] say otherwise every write is on the disk before it is
// acknowledged.
type Server struct {
	ns     *server.Server
	lock   *os.File
	held   []*os.File // locks of the memory in which batches are staged
	dir    string
	addr   Address // of who types commands
	own    Address // of the server's own process
	failed chan error
	synced chan struct{} // closed when nothing calls syncfs any more
	quit   func()        // ends that
}

func addressFile(dir string) string { return filepath.Join(dir, "nats.json") }

// ReadAddress reads the address of the server that runs on a data directory.
// That the file is there does not say that the server still runs.
func ReadAddress(dir string) (Address, error) {
	b, err := os.ReadFile(addressFile(dir))
	if errors.Is(err, fs.ErrNotExist) {
		return Address{}, fmt.Errorf("no server runs on %s: %w", dir, ErrNotFound)
	}
	if err != nil {
		return Address{}, err
	}
	var a Address
	if err := json.Unmarshal(b, &a); err != nil {
		return Address{}, fmt.Errorf("read %s: %w", addressFile(dir), err)
	}
	a.dir = dir
	return a, nil
}

// StartServer starts a server on a data directory, which it creates. If one
// runs there already the error wraps [ErrInUse].
func StartServer(dir string, o ServerOptions) (*Server, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the data directory: %w (choose another: --data DIR)", err)
	}
	lock, err := LockFile(dir, "lock")
	if err != nil {
		return nil, err
	}
	s, err := startServer(dir, o)
	if err != nil {
		lock.Close()
		return nil, err
	}
	s.lock = lock
	return s, nil
}

// LockFile takes a lock file in a data directory for as long as the returned
// file is open. nats-server itself would start on a directory that another one
// uses, and corrupt it. If somebody has the lock the error wraps [ErrInUse].
func LockFile(dir, name string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, name), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock the data directory: %w (choose another: --data DIR)", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("%w: %s", ErrInUse, dir)
		}
		return nil, fmt.Errorf("lock %s: %w", dir, err)
	}
	return f, nil
}

func startServer(dir string, o ServerOptions) (*Server, error) {
	host, port := lastAddress(dir)
	if o.Listen != "" {
		var err error
		if host, port, err = parseListen(o.Listen); err != nil {
			return nil, err
		}
	}
	if port != server.RANDOM_PORT {
		if err := free(host, port); err != nil {
			if o.Listen != "" {
				return nil, fmt.Errorf("listen on %s: %w (choose another: --listen 127.0.0.1:PORT, or leave it out for a free one)", o.Listen, err)
			}
			port = server.RANDOM_PORT
		}
	}
	users, err := auth.OpenLocal(dir, o.Analyzers)
	if err != nil {
		return nil, fmt.Errorf("open the users' credentials: %w", err)
	}
	opts, err := server.ProcessConfigFile(users.Config)
	if err != nil {
		return nil, fmt.Errorf("read the accounts: %w", err)
	}
	opts.ServerName, opts.Host, opts.Port = "petri", host, port
	opts.NoSigs, opts.DisableJetStreamBanner = true, true
	opts.DontListen = true                // until the log is whole
	opts.AuthTimeout = 20                 // seconds: a client on a busy machine is no stranger
	opts.MaxPayload = MaxPayload + 64<<10 // and headers
	// JetStream's data lies in dir/jetstream.
	opts.JetStream, opts.StoreDir, opts.SyncAlways, opts.SyncInterval = true, dir, o.Sync == 0, o.Sync
	// Each stream has its own bound; a common one would only count what they
	// reserve.
	opts.JetStreamMaxStore, opts.JetStreamMaxMemory = 1<<50, 256<<20
	if err := adopt(filepath.Join(dir, server.JetStreamStoreDir), users.Account); err != nil {
		return nil, err
	}
	ns, err := server.NewServer(opts)
	if err != nil {
		return nil, fmt.Errorf("set up the NATS server: %w", err)
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	failed := make(chan error, 1)
	ns.SetLoggerV2(serverLog{o.Log, failed}, false, false, false)
	before := hold(stagings(dir)) // of a server that was killed: this one finishes its batch
	ns.Start()
	if !ns.ReadyForConnections(30 * time.Second) {
		ns.Shutdown()
		return nil, fmt.Errorf("the NATS server did not start on %s: see the log, and whether the disk is full or the directory not writable", dir)
	}
	unstage(before)
	s := &Server{ns: ns, dir: dir, failed: failed, synced: make(chan struct{})}
	if s.addr.Creds, err = auth.Credentials(dir, auth.Admin, ""); err == nil {
		s.own.Creds, err = auth.Credentials(dir, auth.Bus, "")
	}
	if err != nil {
		ns.Shutdown()
		return nil, err
	}
	if err := s.open(o.Log); err != nil {
		ns.Shutdown()
		return nil, err
	}
	ns.AcceptLoop(make(chan struct{}))
	if ns.Addr() == nil {
		ns.Shutdown()
		return nil, fmt.Errorf("the NATS server cannot listen on %s: see the log", net.JoinHostPort(host, strconv.Itoa(port)))
	}
	s.addr.URL, s.addr.PID = ns.ClientURL(), os.Getpid()
	ctx, cancel := context.WithCancel(context.Background())
	s.quit = cancel
	go s.syncAll(ctx, o.Sync, o.Log)
	return s, nil
}

// lastAddress is where a server that died here was to be found: its clients,
// which live on, look for the next one there.
func lastAddress(dir string) (host string, port int) {
	a, err := ReadAddress(dir)
	if err == nil {
		if u, err := url.Parse(a.URL); err == nil {
			if host, port, err := parseListen(u.Host); err == nil {
				return host, port
			}
		}
	}
	return "127.0.0.1", server.RANDOM_PORT
}

// adopt gives an account the streams that lie in a server's directory as
// another's: an older Petri's server had no accounts, and keys can be lost.
func adopt(dir, account string) error {
	own := filepath.Join(dir, account)
	if _, err := os.Stat(own); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	all, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	var from []string
	for _, e := range all {
		if _, err := os.Stat(filepath.Join(dir, e.Name(), "streams", streamLog)); err == nil {
			from = append(from, e.Name())
		}
	}
	switch len(from) {
	case 0:
		return nil
	case 1:
		return os.Rename(filepath.Join(dir, from[0]), own)
	}
	return fmt.Errorf("%s has a log in each of %q: which is Petri's? (move the others away)", dir, from)
}

// free reports why nobody can listen on a port.
func free(host string, port int) error {
	l, err := net.Listen("tcp", net.JoinHostPort(host, strconv.Itoa(port)))
	if err != nil {
		return errors.Unwrap(err)
	}
	return l.Close()
}

// Limits sizes the assets of a new data directory by the disk that it lies on.
func (s *Server) Limits() Limits {
	var st unix.Statfs_t
	if err := unix.Statfs(s.dir, &st); err != nil {
		return Limits{}
	}
	free := int64(st.Bavail) * st.Bsize
	return Limits{Log: max(1<<30, free/5), Store: max(1<<30, free*3/5)}
}

func parseListen(s string) (host string, port int, err error) {
	host, p, err := net.SplitHostPort(s)
	if err == nil {
		port, err = strconv.Atoi(p)
	}
	if err != nil {
		return "", 0, fmt.Errorf("--listen %q is not HOST:PORT (for example 127.0.0.1:4222)", s)
	}
	ip := net.ParseIP(host)
	if ip == nil || !ip.IsLoopback() {
		return "", 0, fmt.Errorf("--listen %q is not on a loopback address: the embedded server serves this machine only (for others run a NATS server of your own: --nats URL)", s)
	}
	return host, port, nil
}

// Announce writes the server's address into the data directory, where clients
// look for it. It comes after [Bus.Reconcile]: who finds the address shall find
// the streams too.
func (s *Server) Announce() error {
	if err := s.stage(); err != nil { // of new streams
		return err
	}
	b, err := json.Marshal(s.addr)
	if err != nil {
		return err
	}
	tmp := addressFile(s.dir) + ".tmp"
	if err := os.WriteFile(tmp, append(b, '\n'), 0o600); err != nil {
		return fmt.Errorf("write the server's address: %w", err)
	}
	if err := os.Rename(tmp, addressFile(s.dir)); err != nil {
		return err
	}
	return s.SyncAssets() // the next server takes the port from there
}

// Address is how who types commands reaches the server.
func (s *Server) Address() Address { return s.addr }

// Connect connects in the same process, without a socket, as the bus itself.
func (s *Server) Connect(ctx context.Context, name string) (*Bus, error) {
	return connect(ctx, s.own, name, s.ns)
}

// SyncAssets makes the definitions of new streams and consumers durable, which
// nats-server leaves to the file system.
func (s *Server) SyncAssets() error {
	f, err := os.Open(s.dir)
	if err != nil {
		return err
	}
	defer f.Close()
	return os.NewSyscallError("syncfs", unix.Syncfs(int(f.Fd())))
}

// syncAll makes the definitions of what is made later durable too. Without an
// interval nats-server does that itself.
func (s *Server) syncAll(ctx context.Context, every time.Duration, log *slog.Logger) {
	defer close(s.synced)
	if every == 0 {
		return
	}
	t := time.NewTicker(every)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
			if err := s.SyncAssets(); err != nil {
				log.Error("bring the log to the disk", "error", err)
			}
		}
	}
}

// Close stops the server and gives the directory free.
func (s *Server) Close() {
	_ = os.Remove(addressFile(s.dir))
	s.stop()
	unstage(stagings(s.dir))
	s.release()
	s.lock.Close()
}

// Kill stops the server as a crash would, as far as its clients can see: its
// address stays where it was.
func (s *Server) Kill() {
	s.stop()
	s.release()
	s.lock.Close()
}

func (s *Server) stop() {
	s.quit()
	<-s.synced
	s.ns.Shutdown()
	s.ns.WaitForShutdown()
}

// Failed tells when the server could not write to the disk. It takes no more
// messages then until it is started anew.
func (s *Server) Failed() <-chan error { return s.failed }

// serverLog passes nats-server's lines to slog. Its notices are of no interest
// to the users of an embedded server.
type serverLog struct {
	l      *slog.Logger
	failed chan<- error
}

func (s serverLog) Noticef(f string, v ...any) {
	s.l.Debug("nats server", "text", fmt.Sprintf(f, v...))
}
func (s serverLog) Warnf(f string, v ...any) {
	text := fmt.Sprintf(f, v...)
	if strings.Contains(text, "Slow Consumer") { // a client was cut off
		s.l.Warn("a client is too slow", "text", text)
		return
	}
	s.l.Debug("nats server", "text", text)
}
func (s serverLog) Fatalf(f string, v ...any) { s.l.Error("nats server", "text", fmt.Sprintf(f, v...)) }
func (s serverLog) Errorf(f string, v ...any) {
	text := fmt.Sprintf(f, v...)
	s.l.Error("nats server", "text", text)
	// The server tells in no other way that a stream is given up (nats-server
	// 2.15, stream.setWriteErrLocked).
	if strings.Contains(text, "critical write error") {
		select {
		case s.failed <- errors.New(text):
		default:
		}
	}
}
func (s serverLog) Debugf(string, ...any) {}
func (s serverLog) Tracef(string, ...any) {}
