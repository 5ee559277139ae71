// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"errors"
	"hash/maphash"
	"io"
	"os"
)

// seen is a set of keys in bounded memory: some are kept there, and when they are
// too many all are moved to a file without a name. Where the file has no room
// they stay in memory: an event that comes twice must be noticed. It is for one
// goroutine; the file is gone with whatever refers to it.
type seen struct {
	memory map[seenKey]struct{}
	file   *seenFile // nil: there is none yet
	stuck  bool      // the file takes no more
}

type seenKey [16]byte

// seenInMemory is how many keys are moved at once: some 2 MB of them.
const seenInMemory = 1 << 16

// add adds a key and reports whether it was there before.
func (s *seen) add(k seenKey) (was bool, err error) {
	if _, was := s.memory[k]; was {
		return true, nil
	}
	if s.file != nil {
		if _, was, err := s.file.find(k); err != nil || was {
			return was, err
		}
	}
	if len(s.memory) >= seenInMemory && !s.stuck {
		s.stuck = s.move() != nil
	}
	if s.memory == nil {
		s.memory = map[seenKey]struct{}{}
	}
	s.memory[k] = struct{}{}
	return false, nil
}

// move moves what is in memory to the file, or to one with more room.
func (s *seen) move() error {
	to := s.file
	if to == nil || uint64(to.keys+len(s.memory)) > to.slots/2 {
		slots := uint64(4 * seenInMemory)
		if to != nil {
			slots = 4 * to.slots
		}
		var err error
		if to, err = newSeenFile(slots); err != nil {
			return err
		}
	}
	err := to.take(s.file)
	for k := range s.memory {
		if err == nil {
			err = to.put(k)
		}
	}
	if err != nil {
		if to != s.file {
			to.f.Close()
		}
		return err // what was put is there twice, which does no harm
	}
	if s.file != nil && s.file != to {
		s.file.f.Close()
	}
	s.file = to
	clear(s.memory)
	return nil
}

// A seenFile is a hash table with open addressing, at most half full. An empty
// slot is of zeros. Who chooses the keys does not know where they come to lie.
type seenFile struct {
	f     *os.File
	seed  maphash.Seed
	slots uint64
	keys  int
}

func newSeenFile(slots uint64) (*seenFile, error) {
	f, err := os.CreateTemp("", "petri-seen-")
	if err != nil {
		return nil, err
	}
	if err := errors.Join(os.Remove(f.Name()), f.Truncate(int64(slots)*int64(len(seenKey{})))); err != nil {
		f.Close()
		return nil, err
	}
	return &seenFile{f: f, seed: maphash.MakeSeed(), slots: slots}, nil
}

// find returns where a key lies, or is to lie.
func (t *seenFile) find(k seenKey) (at int64, was bool, err error) {
	for slot := maphash.Bytes(t.seed, k[:]) % t.slots; ; slot = (slot + 1) % t.slots {
		var have seenKey
		at = int64(slot) * int64(len(have))
		if _, err := t.f.ReadAt(have[:], at); err != nil {
			return 0, false, err
		}
		if have == k || have == (seenKey{}) {
			return at, have == k, nil
		}
	}
}

func (t *seenFile) put(k seenKey) error {
	at, was, err := t.find(k)
	if err != nil || was {
		return err
	}
	t.keys++
	_, err = t.f.WriteAt(k[:], at)
	return err
}

// take puts all keys of another table, if there is another.
func (t *seenFile) take(from *seenFile) error {
	if from == nil || from == t {
		return nil
	}
	r := io.NewSectionReader(from.f, 0, int64(from.slots)*int64(len(seenKey{})))
	for page := make([]byte, 64<<10); ; {
		n, err := r.Read(page)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		for rest := page[:n]; len(rest) > 0; rest = rest[len(seenKey{}):] {
			if k := seenKey(rest); k != (seenKey{}) {
				if err := t.put(k); err != nil {
					return err
				}
			}
		}
	}
}
