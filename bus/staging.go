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
	"slices"

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

// A staging is a link that sends a stream's batches to memory.
type staging struct {
	link   string   // the server's own directory of batches
	target string   // in memory; empty: the batches lie on the disk
	held   *os.File // the lock of who uses it
}

// stagings returns those of the streams below a server's directory that take
// batches.
func stagings(dir string) (out []staging) {
	for _, name := range []string{streamLog, streamInbox, objectStreamName(bucketArtifacts)} {
		dirs, err := filepath.Glob(filepath.Join(dir, server.JetStreamStoreDir, "*", "streams", name))
		if err != nil || len(dirs) != 1 { // there is none yet
			continue
		}
		st := staging{link: filepath.Join(dirs[0], "batches")}
		st.target, _ = os.Readlink(st.link)
		out = append(out, st)
	}
	return out
}

// stageable returns why batches cannot be staged in memory.
func stageable() error {
	var f unix.Statfs_t
	if err := unix.Statfs(memoryDir, &f); err != nil {
		return fmt.Errorf("look at %s: %w", memoryDir, err)
	}
	if f.Type != unix.TMPFS_MAGIC {
		return fmt.Errorf("%s is no tmpfs", memoryDir)
	}
	if int64(f.Bavail)*f.Bsize < stagingRoom {
		return fmt.Errorf("%s has no room", memoryDir)
	}
	return nil
}

// stage sends batches to memory, if that serves, and returns what holds it. The
// server takes a link away when it starts.
func stage(dir string) (held []*os.File, err error) {
	if stageable() != nil {
		return nil, nil
	}
	for _, st := range stagings(dir) {
		if st.target != "" {
			continue
		}
		link, err := filepath.Abs(st.link)
		if err != nil {
			return held, nil
		}
		own, lock, err := ownMemory(link)
		if err != nil {
			return held, nil
		}
		err = os.Symlink(filepath.Join(own, memoryBatches), st.link)
		if err != nil {
			_ = os.RemoveAll(own)
			lock.Close()
		} else {
			held = append(held, lock)
		}
		if err != nil && !errors.Is(err, fs.ErrExist) { // it is there where batches are on the disk already
			return held, fmt.Errorf("stage batches in memory: %w", err)
		}
	}
	return held, nil
}

// unstage gives the memory of a server free that has stopped, or of one before
// this.
func unstage(all []staging) {
	for _, st := range all {
		if own := memoryOf(st.target); own != "" {
			_ = os.RemoveAll(own)
			_ = os.Remove(st.link)
		}
		if st.held != nil {
			st.held.Close()
		}
	}
}

// mend takes the beginning of a batch out of the log of which a power cut has
// taken the end. Nobody else may write meanwhile. The inbox needs none of that:
// its batches only share a cost. Nor does the store: a chunk
// without a meta record is for the collector.
func mend(ctx context.Context, js jetstream.JetStream, log *slog.Logger) error {
	stream, err := js.Stream(ctx, streamLog)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look at the log's end: %w", err)
	}
	torn := ""
	var msgs []*jetstream.RawStreamMsg // of the torn batch, the newest first
	for seq := stream.CachedInfo().State.LastSeq; seq > 0; seq-- {
		m, err := stream.GetMsg(ctx, seq)
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			break
		}
		if err != nil {
			return fmt.Errorf("look at the log's end: %w", err)
		}
		id := m.Header.Get(headerBatch)
		if id == "" || torn == "" && m.Header.Get(headerCommit) != "" || torn != "" && id != torn {
			break
		}
		torn = id
		m.Data = nil // only its place counts
		msgs = append(msgs, m)
	}
	// The oldest first: whoever dies meanwhile leaves an end that is torn.
	for _, m := range slices.Backward(msgs) {
		// Messages go by their subject only, which the findings of several runs
		// share: then this one stays, and what is committed again is its copy.
		info, err := stream.Info(ctx, jetstream.WithSubjectFilter(m.Subject))
		if err == nil && info.State.Subjects[m.Subject] == 1 {
			err = stream.Purge(ctx, jetstream.WithPurgeSubject(m.Subject))
		}
		if err != nil {
			return fmt.Errorf("take a torn batch out of the log: %w", err)
		}
		log.Warn("the log ended in the middle of a batch, as a power cut leaves it: what was there is committed again", "sequence", m.Sequence, "subject", m.Subject)
	}
	return nil
}

// open makes a server's log whole and its batches fast before clients come.
func (s *Server) open(log *slog.Logger) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	nc, err := nats.Connect("", nats.InProcessServer(s.ns), nats.UserCredentials(s.own.Creds), nats.Timeout(patience))
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
	sweep(log)
	return s.stage()
}

// stage is [stage] for as long as the server lives.
func (s *Server) stage() error {
	held, err := stage(s.dir)
	s.held = append(s.held, held...)
	return err
}

// release lets go of the memory in which batches were staged.
func (s *Server) release() {
	for _, f := range s.held {
		f.Close()
	}
	s.held = nil
}
