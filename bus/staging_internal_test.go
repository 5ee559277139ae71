// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/petri-sandbox/petri/bus/faults"
)

// openLog starts a server on a directory.
func openLog(t *testing.T, dir string) (*Server, *Bus) {
	t.Helper()
	s, err := StartServer(dir, ServerOptions{})
	if err != nil {
		t.Fatal(err)
	}
	b, err := s.Connect(t.Context(), "test")
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(b.Reconcile(t.Context(), Limits{Log: 1 << 30, Store: 1 << 30}), s.Announce()); err != nil {
		t.Fatal(err)
	}
	return s, b
}

// A power cut in the middle of a batch leaves its beginning, and nothing of what
// was staged.
func TestTornBatch(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s, b := openLog(t, dir)
	ctx := t.Context()
	msgs := func(what string) (out []batchMsg) {
		for _, n := range []string{"0", "1", "2"} {
			out = append(out, batchMsg{subject: "petri.default.A.finding.low.x." + what + "." + n, id: what + n, body: []byte(strings.Repeat(n, 1000))})
		}
		return out
	}
	if _, err := b.publishBatch(ctx, msgs("whole")); err != nil {
		t.Fatal(err)
	}
	staged := stagings(dir)
	if len(staged) != 3 { // the log, the inbox, the store
		t.Errorf("batches are staged in %v", staged)
	}
	for _, st := range staged {
		if left, err := os.ReadDir(st.target); err != nil || len(left) != 0 {
			t.Errorf("%s is on the disk, or %v is left of a batch: %v", st.link, left, err)
		}
	}
	if _, err := b.publishBatch(ctx, msgs("torn")); err != nil {
		t.Fatal(err)
	}
	b.Close()
	s.Close()
	for _, st := range staged {
		if _, err := os.Stat(st.target); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is left: %v", st.target, err)
		}
	}

	// Take the last record away: the server trusts its index no more than this.
	files, err := filepath.Glob(filepath.Join(dir, "jetstream", "*", "streams", streamLog, "msgs", "*"))
	if err != nil {
		t.Fatal(err)
	}
	cut := false
	for _, f := range files {
		data, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		if i := bytes.LastIndex(data, []byte(strings.Repeat("2", 1000))); i > 0 && strings.HasSuffix(f, ".blk") {
			if err := os.Truncate(f, int64(i)); err != nil {
				t.Fatal(err)
			}
			cut = true
			continue
		}
		if err := os.Remove(f); err != nil {
			t.Fatal(err)
		}
	}
	if !cut {
		t.Fatalf("no block has the batch: %v", files)
	}

	s, b = openLog(t, dir)
	defer s.Close()
	defer b.Close()
	stream, err := b.js.Stream(ctx, streamLog)
	if err != nil {
		t.Fatal(err)
	}
	var figures faults.Figures
	for _, m := range msgs("whole") {
		figures.Acked++
		if _, err := stream.GetLastMsgForSubject(ctx, m.subject); err != nil {
			t.Errorf("%s: %v", m.subject, err)
			figures.Lost++
		}
	}
	for _, m := range msgs("torn") {
		if _, err := stream.GetLastMsgForSubject(ctx, m.subject); !errors.Is(err, jetstream.ErrMsgNotFound) {
			t.Errorf("%s is there: %v", m.subject, err)
		}
	}
	seq, err := b.publishBatch(ctx, msgs("torn")) // who was not answered sends it again
	if err != nil {
		t.Fatal(err)
	}
	if m, err := stream.GetMsg(ctx, seq, jetstream.WithGetMsgSubject("petri.default.A.finding.low.x.torn.2")); err != nil || m.Sequence != seq {
		t.Errorf("%v at %d: %v", m, seq, err)
	}
	info, err := stream.Info(ctx, jetstream.WithSubjectFilter("petri.default.A.>"))
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range msgs("torn") {
		n := int(info.State.Subjects[m.subject])
		figures.Acked++
		figures.Doubled += max(0, n-1)
		if n == 0 {
			figures.Lost++
		}
	}
	figures.Report(t)
}
