// SPDX-License-Identifier: Apache-2.0

package static

import (
	"math"

	"github.com/petri-sandbox/petri/schemas"
)

const (
	minBlock  = 4096
	maxBlocks = 1024
)

// counts counts bytes by value. It is an io.Writer.
type counts [256]int64

func (c *counts) Write(b []byte) (int, error) {
	// Four tables, or runs of one byte would wait for each other's counter.
	var t [4][256]uint32
	n := len(b)
	for ; len(b) >= 4; b = b[4:] {
		t[0][b[0]]++
		t[1][b[1]]++
		t[2][b[2]]++
		t[3][b[3]]++
	}
	for _, x := range b {
		t[0][x]++
	}
	for i := range c {
		c[i] += int64(t[0][i]) + int64(t[1][i]) + int64(t[2][i]) + int64(t[3][i])
	}
	return n, nil
}

// entropy is Shannon's, in bits per byte, to four decimals: the ones behind
// differ between CPUs.
func (c *counts) entropy() float64 {
	var n, sum float64
	for _, k := range c {
		if k > 0 {
			x := float64(k)
			n += x
			sum += x * math.Log2(x)
		}
	}
	if n == 0 {
		return 0
	}
	e := math.Round((math.Log2(n)-sum/n)*1e4) / 1e4
	return min(max(e, 0), 8)
}

// profile measures a file block by block. It is an io.Writer.
type profile struct {
	size   int64 // of a block
	left   int64 // of this block
	block  counts
	whole  counts
	blocks []float64
}

func newProfile(size int64) *profile {
	p := &profile{size: minBlock, blocks: []float64{}}
	for (size+p.size-1)/p.size > maxBlocks {
		p.size *= 2
	}
	p.left = p.size
	return p
}

func (p *profile) Write(b []byte) (int, error) {
	n := len(b)
	for len(b) > 0 {
		k := min(int64(len(b)), p.left)
		p.block.Write(b[:k])
		b = b[k:]
		if p.left -= k; p.left == 0 {
			p.flush()
		}
	}
	return n, nil
}

func (p *profile) flush() {
	p.blocks = append(p.blocks, p.block.entropy())
	for i := range p.whole {
		p.whole[i] += p.block[i]
	}
	p.block, p.left = counts{}, p.size
}

func (p *profile) entropy() schemas.Entropy {
	if p.left < p.size {
		p.flush()
	}
	return schemas.Entropy{Whole: p.whole.entropy(), BlockSize: p.size, Blocks: p.blocks}
}
