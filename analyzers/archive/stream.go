// SPDX-License-Identifier: Apache-2.0

package archive

import (
	"archive/tar"
	"bufio"
	"compress/bzip2"
	"compress/gzip"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
)

// maxWindow bounds the memory of a decompressor, in bytes.
const maxWindow = 64 << 20

// decompress returns a reader of a compressed stream, and what ends it.
func decompress(format string, r io.Reader) (io.Reader, func(), error) {
	nothing := func() {}
	switch format {
	case "gzip":
		z, err := gzip.NewReader(r)
		return z, nothing, err
	case "bzip2":
		return bzip2.NewReader(r), nothing, nil
	case "xz":
		z, err := xz.NewReader(bufio.NewReader(r))
		return z, nothing, err
	case "zstd":
		z, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderMaxMemory(maxWindow))
		if err != nil {
			return nil, nothing, err
		}
		return z, z.Close, nil
	}
	return nil, nothing, fmt.Errorf("no decompressor for %s", format)
}

// stream takes out the one file of a compressed stream.
func (x *extraction) stream() error {
	x.Entries = 1
	r, end, err := decompress(x.Format, x.in.Reader())
	name := ""
	if z, ok := r.(*gzip.Reader); ok && err == nil {
		name = z.Name
	}
	x.note(name)
	if err != nil {
		x.damage(err)
		return x.ctx.Err()
	}
	defer end()
	return x.derive(name, x.in.Size(), r, false)
}

// tar takes the files out of a tar.
func (x *extraction) tar() error {
	t := tar.NewReader(x.in.Reader())
	for {
		if err := x.ctx.Err(); err != nil {
			return err
		}
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			x.damage(err)
			return nil
		}
		if x.Entries >= maxLook {
			x.LeftOut++
			x.bomb = fmt.Sprintf("more than %d entries", maxLook)
			return nil
		}
		x.Entries++
		switch h.Typeflag {
		case tar.TypeReg, tar.TypeGNUSparse:
			x.note(h.Name)
			if h.Size > maxEach {
				// To read a hole of terabytes takes hours.
				x.LeftOut++
				if h.Size > x.in.Size() {
					x.bomb = fmt.Sprintf("%q has %d bytes in an archive of %d", clip(h.Name, maxName), h.Size, x.in.Size())
					return nil
				}
				continue
			}
			if err := x.derive(h.Name, h.Size, t, false); err != nil {
				return err
			}
		case tar.TypeDir:
			x.Dirs++
		case tar.TypeLink, tar.TypeSymlink:
			x.Links++
		default:
			x.Special++
		}
	}
}
