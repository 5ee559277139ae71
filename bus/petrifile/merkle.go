// SPDX-License-Identifier: Apache-2.0

package petrifile

import (
	"crypto/sha256"
	"math/bits"

	"github.com/petri-sandbox/petri/schemas"
)

// A Tree is the Merkle tree hash over a row of byte strings that only grows. It
// keeps no more than the hashes of the perfect subtrees that cover the row. The
// zero Tree is empty.
// https://www.rfc-editor.org/rfc/rfc9162#section-2.1.1
type Tree struct {
	size     uint64
	subtrees []schemas.Digest // from the left, of ever smaller size: one per bit of size
}

// LeafHash is the hash of one byte string as the tree has it.
func LeafHash(b []byte) schemas.Digest {
	h := sha256.New()
	h.Write([]byte{0})
	h.Write(b)
	return schemas.Digest(h.Sum(nil))
}

func nodeHash(left, right schemas.Digest) schemas.Digest {
	var b [1 + 2*sha256.Size]byte
	b[0] = 1
	copy(b[1:], left[:])
	copy(b[1+sha256.Size:], right[:])
	return sha256.Sum256(b[:])
}

// Append adds the leaf with that hash behind the others.
func (t *Tree) Append(leaf schemas.Digest) {
	// Each bit that the count carries over joins two subtrees of one size.
	for range bits.TrailingZeros64(^t.size) {
		last := len(t.subtrees) - 1
		leaf = nodeHash(t.subtrees[last], leaf)
		t.subtrees = t.subtrees[:last]
	}
	t.subtrees = append(t.subtrees, leaf)
	t.size++
}

// Size is how many leaves there are.
func (t *Tree) Size() uint64 { return t.size }

// Root is the tree's hash as it stands.
func (t *Tree) Root() schemas.Digest {
	if t.size == 0 {
		return sha256.Sum256(nil)
	}
	i := len(t.subtrees) - 1
	root := t.subtrees[i]
	for i--; i >= 0; i-- {
		root = nodeHash(t.subtrees[i], root)
	}
	return root
}

// clone returns a tree that grows apart from t.
func (t *Tree) clone() Tree {
	return Tree{size: t.size, subtrees: append([]schemas.Digest(nil), t.subtrees...)}
}
