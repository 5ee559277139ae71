// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sys/unix"
)

// A server without replicas stages each atomic batch in a file store of its own
// below the stream's directory, some files with an fsync each, before it writes
// the batch to the stream with one more: that was most of a commit's time. The
// staged copy is there to finish a batch when the server was killed in the
// middle. Here it lies in memory that outlives the process, and what a power
// cut tears is taken out of the log at the next start (mend): its messages were
// never acknowledged, and whoever sent them sends them again.

// memoryDir is a tmpfs on every Linux (file-hierarchy(7)).
const memoryDir = "/dev/shm"

// stagingRoom is how much must be free in memory: several times the largest
// batch.
const stagingRoom = 64 << 20

// staging is the link that sends a stream's batches to memory.
type staging struct {
	link   string // the server's own directory of batches
	target string // in memory
}

// findStaging returns the log's staging below a server's directory; the link is
// empty if there is no log yet, the target if the batches lie on the disk.
func findStaging(dir string) staging {
	logs, err := filepath.Glob(filepath.Join(dir, server.JetStreamStoreDir, "*", "streams", streamLog))
	if err != nil || len(logs) != 1 {
		return staging{}
	}
	st := staging{link: filepath.Join(logs[0], "batches")}
	st.target, _ = os.Readlink(st.link)
	return st
}

// stage sends the log's batches to memory, if there is a log, and memory that
// serves. The server takes a link away when it starts.
func stage(dir string) (staging, error) {
	st := findStaging(dir)
	if st.link == "" {
		return staging{}, nil
	}
	if st.target != "" { // a log that the server could not read
		if err := os.Remove(st.link); err != nil {
			return staging{}, fmt.Errorf("stage the log's batches in memory: %w", err)
		}
	}
	var f unix.Statfs_t
	if err := unix.Statfs(memoryDir, &f); err != nil || f.Type != unix.TMPFS_MAGIC || int64(f.Bavail)*f.Bsize < stagingRoom {
		return staging{}, nil
	}
	var err error
	if st.target, err = os.MkdirTemp(memoryDir, "petri-"); err != nil {
		return staging{}, nil
	}
	if err := os.Symlink(st.target, st.link); err != nil {
		os.Remove(st.target)
		if errors.Is(err, fs.ErrExist) { // batches are on the disk already
			return staging{}, nil
		}
		return staging{}, fmt.Errorf("stage the log's batches in memory: %w", err)
	}
	return st, nil
}

// remove gives the memory free.
func (st staging) remove() {
	if filepath.Dir(st.target) == memoryDir { // a link is only a file: it could say anything
		_ = os.RemoveAll(st.target)
	}
}

// mend takes the beginning of a batch out of the log of which a power cut has
// taken the end. Nobody else may write meanwhile.
func mend(ctx context.Context, js jetstream.JetStream, log *slog.Logger) error {
	stream, err := js.Stream(ctx, streamLog)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look at the log's end: %w", err)
	}
	torn := ""
	for seq := stream.CachedInfo().State.LastSeq; seq > 0; seq-- {
		m, err := stream.GetMsg(ctx, seq)
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("look at the log's end: %w", err)
		}
		id := m.Header.Get(headerBatch)
		if id == "" || torn == "" && m.Header.Get(headerCommit) != "" || torn != "" && id != torn {
			return nil
		}
		torn = id
		// What a batch writes has a subject of its own.
		if err := stream.Purge(ctx, jetstream.WithPurgeSubject(m.Subject)); err != nil {
			return fmt.Errorf("take a torn batch out of the log: %w", err)
		}
		log.Warn("the log ended in the middle of a batch, as a power cut leaves it: what was there is taken out, and committed again", "sequence", seq, "subject", m.Subject)
	}
	return nil
}

// open makes a server's log whole and its batches fast before clients come.
func (s *Server) open(log *slog.Logger) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	nc, err := nats.Connect("", nats.InProcessServer(s.ns), nats.UserInfo(s.addr.User, s.addr.Password))
	if err != nil {
		return fmt.Errorf("open the log: %w", err)
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		return fmt.Errorf("open the log: %w", err)
	}
	if err := mend(ctx, js, log); err != nil {
		return err
	}
	s.staging, err = stage(s.dir)
	return err
}
