// SPDX-License-Identifier: Apache-2.0

package archive

import (
	"archive/zip"
	"bufio"
	"bytes"
	"compress/flate"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"io"
	"io/fs"
	"slices"
)

// Compression methods of a zip that have no name in archive/zip.
// https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT 4.4.5
const (
	methodBzip2 = 12
	methodZstd  = 93
	methodXZ    = 95
	methodAES   = 99
)

// Flags of an entry.
const (
	flagEncrypted = 1 << 0
	flagStrong    = 1 << 6 // encrypted in a way that is not documented
)

// zip takes the files out of a zip.
func (x *extraction) zip() error {
	n, err := x.headers()
	if err != nil {
		return err
	}
	if n > maxLook { // each takes memory before the first can be looked at
		x.bomb = fmt.Sprintf("more than %d entries", maxLook)
		return nil
	}
	z, err := zip.NewReader(x.in, x.in.Size())
	if err != nil && !errors.Is(err, zip.ErrInsecurePath) {
		x.damage(err)
		return nil
	}
	for _, f := range z.File {
		if err := x.ctx.Err(); err != nil {
			return err
		}
		x.Entries++
		switch mode := f.Mode(); {
		case mode.IsDir():
			x.Dirs++
		case mode&fs.ModeSymlink != 0:
			x.Links++
		case !mode.IsRegular():
			x.Special++
		default:
			x.note(f.Name)
			if err := x.file(f); err != nil {
				return err
			}
		}
	}
	return nil
}

// headers counts, at most a little beyond the limit, what looks like the header
// of an entry in the directory.
func (x *extraction) headers() (int, error) {
	magic := []byte("PK\x01\x02")
	r, buf, n := x.in.Reader(), make([]byte, 256<<10), 0
	kept := 0
	for {
		if err := x.ctx.Err(); err != nil {
			return 0, err
		}
		k, err := io.ReadFull(r, buf[kept:])
		b := buf[:kept+k]
		if n += bytes.Count(b, magic); n > maxLook || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return n, nil
		}
		if err != nil {
			return 0, fmt.Errorf("read file: %w", err)
		}
		kept = copy(buf, b[len(b)-len(magic)+1:])
	}
}

// file takes out one file.
func (x *extraction) file(f *zip.File) error {
	raw := func() (io.Reader, error) { return f.OpenRaw() }
	packed := int64(min(f.CompressedSize64, 1<<62))
	if f.Flags&flagEncrypted == 0 {
		r, err := raw()
		if err == nil {
			r, err = unpack(f.Method, r)
		}
		return x.opened(f, packed, r, err)
	}
	x.Encrypted++
	if f.Flags&flagStrong != 0 {
		x.Locked++
		return nil
	}
	for _, password := range x.passwords {
		r, err := raw()
		if err != nil {
			x.damage(err)
			return nil
		}
		var method uint16
		r, method, err = decrypt(f, r, password)
		if errors.Is(err, errPassword) {
			continue
		}
		plain := r
		if err == nil {
			r, err = unpack(method, r)
		}
		if err != nil {
			return x.opened(f, packed, nil, err)
		}
		r = &drained{r: r, from: plain}
		before := *x
		err = x.derive(f.Name, packed, checked(f, r), true)
		if x.ctx.Err() != nil {
			return x.ctx.Err()
		}
		if err != nil { // one in 256, or 65536, wrong passwords gets here
			*x = before
			continue
		}
		x.Password = password
		// It opens the next file too, most likely.
		x.passwords = append([]string{password}, slices.DeleteFunc(slices.Clone(x.passwords), func(s string) bool { return s == password })...)
		return nil
	}
	x.Locked++
	return nil
}

// opened takes out a file that is not encrypted.
func (x *extraction) opened(f *zip.File, packed int64, r io.Reader, err error) error {
	if errors.Is(err, errMethod) {
		x.Unknown++
		return nil
	}
	if err != nil {
		x.damage(err)
		return nil
	}
	return x.derive(f.Name, packed, checked(f, r), false)
}

// drained reads on behind the end of what was compressed: only there it shows
// whether the bytes are those that were encrypted.
type drained struct{ r, from io.Reader }

func (d *drained) Read(p []byte) (int, error) {
	n, err := d.r.Read(p)
	if errors.Is(err, io.EOF) {
		if _, bad := io.Copy(io.Discard, d.from); bad != nil {
			err = bad
		}
	}
	return n, err
}

var errMethod = errors.New("unknown compression method")

func unpack(method uint16, r io.Reader) (io.Reader, error) {
	switch method {
	case zip.Store:
		return r, nil
	case zip.Deflate:
		return flate.NewReader(bufio.NewReader(r)), nil
	case methodBzip2, methodZstd, methodXZ:
		out, _, err := decompress(map[uint16]string{methodBzip2: "bzip2", methodZstd: "zstd", methodXZ: "xz"}[method], r)
		return out, err
	}
	return nil, fmt.Errorf("%w %d", errMethod, method)
}

// checked ends with an error if the bytes are not those of the entry.
func checked(f *zip.File, r io.Reader) io.Reader {
	if f.CRC32 == 0 { // as with AES, which has a check of its own
		return r
	}
	return &checksum{r: r, want: f.CRC32, hash: crc32.NewIEEE()}
}

type checksum struct {
	r    io.Reader
	want uint32
	hash hash.Hash32
}

func (c *checksum) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.hash.Write(p[:n])
	if errors.Is(err, io.EOF) && c.hash.Sum32() != c.want {
		err = zip.ErrChecksum
	}
	return n, err
}
