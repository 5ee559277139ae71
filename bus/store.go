// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nuid"

	"github.com/petri-sandbox/petri/schemas"
)

// The store keeps bytes by the sha256 of what they are uncompressed. An object
// is a row of independent zstd frames of 1 MiB each, so that a part of a memory
// image can be read alone; one after the other they are one valid zstd stream.
// The layout in the stream is that of any NATS object bucket (ADR-20).
//
// The client's own Put is not used: it has thousands of chunks in flight,
// loses some of them under load, and then leaves the meta record of an object
// that is not there. Here the chunks are bounded, each is acknowledged, and the
// meta record comes last.

const (
	frameSize   = 1 << 20
	maxInFlight = 16 // frames on their way to the server
)

// Object is what the store knows of a digest.
type Object struct {
	SHA256 schemas.Digest
	Kind   schemas.Kind
	Size   int64 // uncompressed bytes
	Stored int64 // bytes in the stream
	meta   jetstream.ObjectInfo
	seq    uint64 // of the meta record
}

// Caps bound what one artifact of a kind may have, in uncompressed bytes.
type Caps map[schemas.Kind]int64

// defaultCap is for kinds that Caps does not name.
const defaultCap = 1 << 30

func (c Caps) of(k schemas.Kind) int64 {
	if n, ok := c[k]; ok {
		return n
	}
	return defaultCap
}

// A Store is one bucket of the artifact store. It is safe for concurrent use.
type Store struct {
	b      *Bus
	bucket string
	caps   Caps

	analysis string // that names what is read; see [Store.For]
}

// Artifacts is the store that all of Petri shares.
func (b *Bus) Artifacts() *Store { return &Store{b: b, bucket: bucketArtifacts} }

// Reports is the store of rendered reports.
func (b *Bus) Reports() *Store { return &Store{b: b, bucket: bucketReports} }

// uploads is where an analyzer puts what the clerk has not verified yet.
func (b *Bus) uploads(analyzer string) *Store { return &Store{b: b, bucket: bucketUploads + analyzer} }

// WithCaps returns the same store with limits per kind.
func (s *Store) WithCaps(c Caps) *Store { return &Store{b: s.b, bucket: s.bucket, caps: c} }

// For returns the same store for the reading of what an analysis names. With the
// credentials of a tenant's user nothing else can be read.
func (s *Store) For(analysis string) *Store {
	t := *s
	t.analysis = analysis
	return &t
}

func (s *Store) stream() string { return objectStreamName(s.bucket) }
func (s *Store) chunkSubject(nuid string) string {
	return "$O." + s.bucket + ".C." + nuid
}
func (s *Store) metaSubject(name string) string {
	return "$O." + s.bucket + ".M." + base64.URLEncoding.EncodeToString([]byte(name))
}

// Stat returns what the store has under a digest, or an error that wraps
// [ErrNotFound].
func (s *Store) Stat(ctx context.Context, d schemas.Digest) (Object, error) {
	return s.stat(ctx, d, s.record)
}

func (s *Store) stat(ctx context.Context, d schemas.Digest, record func(context.Context, schemas.Digest) (*jetstream.RawStreamMsg, error)) (Object, error) {
	m, err := record(ctx, d)
	if errors.Is(err, ErrNotFound) {
		return Object{}, fmt.Errorf("artifact %s: %w", d, ErrNotFound)
	}
	if err != nil {
		return Object{}, fmt.Errorf("look up artifact %s: %w", d, err)
	}
	return s.object(d, m.Sequence, m.Data)
}

// record returns the message of an object's meta record.
func (s *Store) record(ctx context.Context, d schemas.Digest) (*jetstream.RawStreamMsg, error) {
	if s.b.tenant != "" {
		return s.askObject(ctx, askStat, d, 0)
	}
	return s.b.lookupIn(ctx, s.stream(), lookup{Last: s.metaSubject(d.String())})
}

// anyRecord is record by any replica's word, or, if that has none, by the
// leader's. The object may have been removed since.
func (s *Store) anyRecord(ctx context.Context, d schemas.Digest) (*jetstream.RawStreamMsg, error) {
	if m, ok := s.b.anyIn(ctx, s.stream(), lookup{Last: s.metaSubject(d.String())}); ok {
		return m, nil
	}
	return s.record(ctx, d)
}

// chunk returns the first chunk of an object from a sequence on, by the leader's
// word.
func (s *Store) chunk(ctx context.Context, o Object, seq uint64) (*jetstream.RawStreamMsg, error) {
	if s.b.tenant != "" {
		return s.askObject(ctx, askChunk, o.SHA256, seq)
	}
	return s.b.lookupIn(ctx, s.stream(), lookup{Next: s.chunkSubject(o.meta.NUID), Seq: seq})
}

// anyChunk is chunk by any replica's word, or, if that has none, by the leader's.
func (s *Store) anyChunk(ctx context.Context, o Object, seq uint64) (*jetstream.RawStreamMsg, error) {
	if m, ok := s.b.anyIn(ctx, s.stream(), lookup{Next: s.chunkSubject(o.meta.NUID), Seq: seq}); ok {
		return m, nil
	}
	return s.chunk(ctx, o, seq)
}

// object reads the meta record that lies at seq.
func (s *Store) object(d schemas.Digest, seq uint64, meta []byte) (Object, error) {
	o := Object{SHA256: d, seq: seq}
	if err := json.Unmarshal(meta, &o.meta); err != nil {
		return Object{}, fmt.Errorf("artifact %s: %w: meta record: %v", d, ErrCorrupt, err)
	}
	if o.meta.Deleted {
		return Object{}, fmt.Errorf("artifact %s: %w", d, ErrNotFound)
	}
	size, err := strconv.ParseInt(o.meta.Metadata["raw_size"], 10, 64)
	if err != nil || o.meta.Metadata["encoding"] != "zstd" {
		return Object{}, fmt.Errorf("artifact %s: %w: meta record lacks raw_size or encoding", d, ErrCorrupt)
	}
	o.Kind, o.Size, o.Stored = schemas.Kind(o.meta.Metadata["kind"]), size, int64(o.meta.Size)
	return o, nil
}

// Put stores what r gives, in constant memory, and returns its digest and
// size. Bytes that the store has already are not kept twice. Of a reader that
// gives more than the kind's cap nothing is kept, and the error wraps
// [ErrTooLarge]. If r is an [io.Seeker] an upload that the server's trouble
// broke is begun again from where r stands now.
func (s *Store) Put(ctx context.Context, kind schemas.Kind, r io.Reader) (schemas.Digest, int64, error) {
	seeker, _ := r.(io.Seeker)
	var start int64
	if seeker != nil {
		var err error
		if start, err = seeker.Seek(0, io.SeekCurrent); err != nil {
			seeker = nil // a pipe in a file's clothes
		}
	}
	for try := 1; ; try++ {
		d, n, err := s.put(ctx, kind, r)
		if err == nil || seeker == nil || try == 3 || ctx.Err() != nil || !errors.Is(err, errReordered) && !transient(err) {
			return d, n, err
		}
		if _, serr := seeker.Seek(start, io.SeekStart); serr != nil {
			return schemas.Digest{}, 0, errors.Join(err, serr)
		}
	}
}

// PutBytes is Put for what is in memory.
func (s *Store) PutBytes(ctx context.Context, kind schemas.Kind, data []byte) (schemas.Digest, int64, error) {
	return s.Put(ctx, kind, bytes.NewReader(data))
}

func (s *Store) put(ctx context.Context, kind schemas.Kind, r io.Reader) (schemas.Digest, int64, error) {
	u := &upload{s: s, id: nuid.Next(), begun: s.b.now(), raw: sha256.New(), stored: sha256.New()}
	limit := s.caps.of(kind)
	first := s.b.frames.Get().(*[frameSize]byte)
	defer s.b.frames.Put(first)
	n, err := io.ReadFull(r, first[:])
	switch {
	case int64(n) > limit:
		err = fmt.Errorf("%w: more than %d bytes", ErrTooLarge, limit)
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		// Most of what there is fits into one frame. If the store has it
		// already nothing need be written.
		d := schemas.Sum(first[:n])
		if n > 0 && s.bucket == bucketArtifacts {
			// Most of what there is is new. If some replica does not have it the
			// leader may, and refuses then what comes now.
			if _, there := s.b.anyIn(ctx, s.stream(), lookup{Last: s.metaSubject(d.String())}); !there {
				err = s.putSmall(ctx, kind, d, first[:n])
				if !errors.Is(err, errConflict) {
					return d, int64(n), err
				}
			}
		}
		serr := s.Keep(ctx, d)
		if serr == nil {
			return d, int64(n), nil
		}
		if !errors.Is(serr, ErrNotFound) {
			return schemas.Digest{}, 0, serr
		}
		err = u.whole(ctx, first[:n])
	case err == nil:
		err = u.copy(ctx, io.MultiReader(bytes.NewReader(first[:]), r), limit)
	}
	if err != nil {
		if u.chunks > 0 {
			s.discard(u.id)
		}
		return schemas.Digest{}, 0, fmt.Errorf("store %s: %w", kind, err)
	}
	var mine bool
	d := schemas.Digest(u.raw.Sum(nil))
	o := u.info(kind, d)
	if s.b.now().Sub(u.begun) > maxUpload {
		err = fmt.Errorf("the upload took more than %s: its first chunks may be gone", maxUpload)
	} else if mine, err = s.enter(ctx, d, o); err == nil && mine {
		return d, u.size, nil
	}
	s.discard(u.id)
	if err != nil {
		return schemas.Digest{}, 0, fmt.Errorf("store %s: %w", kind, err)
	}
	return d, u.size, nil
}

// putSmall stores an object of one chunk and its meta record at once, together
// with whatever else is being stored so. If the record's place is taken, be it by
// the mark of a deletion, nothing is stored and the error is [errConflict].
func (s *Store) putSmall(ctx context.Context, kind schemas.Kind, d schemas.Digest, data []byte) error {
	u := &upload{s: s, id: nuid.Next(), stored: sha256.New()}
	chunk := u.compress(data)
	u.size = int64(len(data))
	meta, err := json.Marshal(u.info(kind, d))
	if err != nil {
		return err
	}
	_, err = s.b.small.put(ctx, &groupTask{msgs: []batchMsg{
		{subject: s.chunkSubject(u.id), body: chunk},
		{subject: s.metaSubject(d.String()), body: meta, first: true},
	}})
	if err != nil && !errors.Is(err, errConflict) {
		return fmt.Errorf("store %s: %w", kind, err)
	}
	return err
}

// info is the meta record of what has been uploaded.
func (u *upload) info(kind schemas.Kind, d schemas.Digest) jetstream.ObjectInfo {
	return jetstream.ObjectInfo{
		ObjectMeta: jetstream.ObjectMeta{
			Name:     d.String(),
			Metadata: map[string]string{"kind": string(kind), "encoding": "zstd", "frame": strconv.Itoa(frameSize), "raw_size": strconv.FormatInt(u.size, 10)},
			Opts:     &jetstream.ObjectMetaOptions{ChunkSize: frameSize},
		},
		Bucket: u.s.bucket, NUID: u.id, Size: uint64(u.written), Chunks: uint32(u.chunks), ModTime: u.s.b.now().UTC(),
		Digest: "SHA-256=" + base64.URLEncoding.EncodeToString(u.stored.Sum(nil)),
	}
}

// enter writes the meta record of chunks that have been uploaded. It reports
// false if the store has the same bytes already; then they are young again.
func (s *Store) enter(ctx context.Context, d schemas.Digest, o jetstream.ObjectInfo) (mine bool, err error) {
	for expect := uint64(0); ; {
		err := s.putMeta(ctx, o, expect)
		if !hasCode(err, codeWrongLastSequence) {
			return err == nil, err
		}
		m, err := s.b.lookupIn(ctx, s.stream(), lookup{Last: s.metaSubject(o.Name)})
		if errors.Is(err, ErrNotFound) { // the mark of a deletion was there, and is no longer
			expect = 0
			continue
		}
		if err != nil {
			return false, err
		}
		have, err := s.object(d, m.Sequence, m.Data)
		switch {
		case errors.Is(err, ErrNotFound): // the mark of a deletion
			expect = m.Sequence
			continue
		case err != nil:
			return false, err
		case have.meta.NUID == o.NUID: // an acknowledgement was lost
			return true, nil
		}
		if err := s.touch(ctx, have); !errors.Is(err, ErrNotFound) {
			return false, err
		}
		// It was collected meanwhile.
	}
}

// putMeta writes an object's meta record in the place of the one at a sequence;
// 0 is none.
func (s *Store) putMeta(ctx context.Context, o jetstream.ObjectInfo, expect uint64) error {
	body, err := json.Marshal(o)
	if err != nil {
		return err
	}
	return retry(ctx, func(ctx context.Context) error {
		_, err := s.b.js.PublishMsg(ctx, &nats.Msg{Subject: s.metaSubject(o.Name), Data: body,
			Header: nats.Header{jetstream.MsgRollup: []string{jetstream.MsgRollupSubject}}},
			jetstream.WithRetryAttempts(0), jetstream.WithExpectLastSequencePerSubject(expect))
		return ofOne(err)
	})
}

// What makes an object safe from the collector: an object is as old as its meta
// record says, every put and every announcement of it makes it young, and what
// is not announced is left alone until it is gcAge old.
const (
	freshFor  = time.Hour      // so young an object need not be made younger
	gcAge     = 24 * time.Hour // of what may be collected
	maxUpload = 12 * time.Hour // from the first chunk to the meta record
)

// Keep makes an object young again, for whoever is about to announce what the
// store has already. If the store does not have it, or not any more, the error
// wraps [ErrNotFound]: it must be put again.
func (s *Store) Keep(ctx context.Context, d schemas.Digest) error {
	o, err := s.Stat(ctx, d)
	if err != nil {
		return err
	}
	return s.touch(ctx, o)
}

// touch makes an object young again, so that a collector that looks for what
// nobody refers to leaves it alone. An object that is young is left as it is.
// One that was collected since it was looked up is not made again: the error
// wraps [ErrNotFound].
func (s *Store) touch(ctx context.Context, o Object) error {
	for {
		now := s.b.now()
		if now.Sub(o.meta.ModTime) < freshFor {
			return nil
		}
		o.meta.ModTime = now.UTC()
		err := s.putMeta(ctx, o.meta, o.seq)
		if !hasCode(err, codeWrongLastSequence) {
			return err
		}
		if o, err = s.Stat(ctx, o.SHA256); err != nil {
			return err
		}
	}
}

// remove deletes an object, unless its meta record is another one than o's: then
// somebody is using it, and it reports false. Whatever it dies between, what is
// left is found by the next collection.
func (s *Store) remove(ctx context.Context, o Object) (bool, error) {
	gone := o.meta
	gone.Deleted, gone.Size, gone.Chunks, gone.Digest, gone.ModTime = true, 0, 0, "", s.b.now().UTC()
	err := s.putMeta(ctx, gone, o.seq)
	if err != nil && !hasCode(err, codeWrongLastSequence) {
		return false, fmt.Errorf("remove artifact %s: %w", o.SHA256, err)
	}
	m, err := s.b.lookupIn(ctx, s.stream(), lookup{Last: s.metaSubject(o.meta.Name)})
	if errors.Is(err, ErrNotFound) {
		return true, nil // somebody else has removed it
	}
	if err != nil {
		return false, fmt.Errorf("remove artifact %s: %w", o.SHA256, err)
	}
	var now jetstream.ObjectInfo
	if json.Unmarshal(m.Data, &now) != nil || !now.Deleted || now.NUID != o.meta.NUID {
		return false, nil
	}
	return true, s.finishRemoval(ctx, now, m.Sequence)
}

// finishRemoval takes away the chunks of an object with the mark of a deletion
// at a sequence, and then the mark.
func (s *Store) finishRemoval(ctx context.Context, o jetstream.ObjectInfo, mark uint64) error {
	st, err := s.b.js.Stream(ctx, s.stream())
	if err != nil {
		return err
	}
	if validNUID(o.NUID) {
		err = retry(ctx, func(ctx context.Context) error {
			return st.Purge(ctx, jetstream.WithPurgeSubject(s.chunkSubject(o.NUID)))
		})
	}
	if err == nil {
		err = retry(ctx, func(ctx context.Context) error {
			return st.Purge(ctx, jetstream.WithPurgeSubject(s.metaSubject(o.Name)), jetstream.WithPurgeSequence(mark+1))
		})
	}
	if err != nil {
		return fmt.Errorf("remove artifact %.80q: %w", o.Name, err)
	}
	return nil
}

// validNUID reports whether s may be a token of a subject that is purged.
func validNUID(s string) bool { return s != "" && strings.Trim(s, tokenLetters) == "" }

// tokenLetters are those of a chunk's token.
const tokenLetters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"

// discard drops the chunks of an upload that came to nothing.
func (s *Store) discard(id string) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	st, err := s.b.js.Stream(ctx, s.stream())
	if err == nil {
		// What this misses no meta record names, and the collector finds it.
		_ = st.Purge(ctx, jetstream.WithPurgeSubject(s.chunkSubject(id)))
	}
}

// upload is one Put in progress.
type upload struct {
	s           *Store
	id          string
	begun       time.Time
	raw, stored hash.Hash
	size        int64
	written     int64
	chunks      int
}

// whole publishes an object of one frame, or of none.
func (u *upload) whole(ctx context.Context, data []byte) error {
	u.raw.Write(data)
	u.size = int64(len(data))
	if len(data) == 0 {
		return nil
	}
	b := u.compress(data)
	subject := u.s.chunkSubject(u.id)
	return retry(ctx, func(ctx context.Context) error {
		_, err := u.s.b.js.PublishMsg(ctx, &nats.Msg{Subject: subject, Data: b}, jetstream.WithMsgID(u.id+".0"), jetstream.WithRetryAttempts(0))
		return err
	})
}

// compress makes the only chunk of an object.
func (u *upload) compress(data []byte) []byte {
	b := u.s.b.encoder.EncodeAll(data, nil)
	u.stored.Write(b)
	u.written, u.chunks = int64(len(b)), 1
	return b
}

// copy compresses r in frames, two at a time, and publishes them in order.
func (u *upload) copy(ctx context.Context, r io.Reader, limit int64) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type frame struct {
		out  chan []byte // holds the compressed frame
		data []byte
	}
	queue := make(chan frame, 2) // to the compressors, closed by the reader
	order := make(chan frame, 2) // to the publisher, closed by the reader
	readErr := make(chan error, 1)
	go func() {
		defer close(order)
		defer close(queue)
		readErr <- u.readFrames(ctx, r, limit, func(data []byte) bool {
			f := frame{out: make(chan []byte, 1), data: data}
			select {
			case queue <- f:
			case <-ctx.Done():
				return false
			}
			select {
			case order <- f:
			case <-ctx.Done():
				return false
			}
			return true
		})
	}()
	for range 2 {
		go func() {
			for f := range queue {
				f.out <- u.s.b.encoder.EncodeAll(f.data, nil)
			}
		}()
	}
	flight := newFlight(u.s.b, maxInFlight)
	var err error
	for f := range order {
		b := <-f.out
		u.stored.Write(b)
		u.written += int64(len(b))
		if err = flight.publish(ctx, u.s.chunkSubject(u.id), b, u.id+"."+strconv.Itoa(u.chunks)); err != nil {
			cancel()
			break
		}
		u.chunks++
	}
	for range order { // let the reader see that ctx is done
	}
	if rerr := <-readErr; rerr != nil && (err == nil || errors.Is(rerr, ErrTooLarge)) {
		err = rerr
	}
	if ferr := flight.wait(ctx); err == nil {
		err = ferr
	}
	return err
}

// readFrames cuts r into frames. An empty r gives none.
func (u *upload) readFrames(ctx context.Context, r io.Reader, limit int64, emit func([]byte) bool) error {
	for {
		buf := make([]byte, frameSize)
		n, err := io.ReadFull(r, buf)
		if n > 0 {
			u.raw.Write(buf[:n])
			u.size += int64(n)
			if u.size > limit {
				return fmt.Errorf("%w: more than %d bytes", ErrTooLarge, limit)
			}
			if !emit(buf[:n]) {
				return ctx.Err()
			}
		}
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func newEncoder() *zstd.Encoder {
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderCRC(true))
	if err != nil {
		panic(err) // the options are constants
	}
	return enc
}

func newDecoder() *zstd.Decoder {
	// One frame is 1 MiB raw; a frame that claims more is not ours.
	dec, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(0), zstd.WithDecoderMaxMemory(2*frameSize))
	if err != nil {
		panic(err) // the options are constants
	}
	return dec
}
