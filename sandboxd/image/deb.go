// SPDX-License-Identifier: Apache-2.0

package image

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"strings"
)

// An entry is one file of a package, or of the file system being built.
type entry struct {
	path string // clean, absolute
	mode os.FileMode
	data []byte // regular files
	link string // target of a symbolic link
	dev  [2]int // major and minor of a character device
}

// What is kept of one package is bounded; the kernel's, the largest, has 4,000
// files and 200 MB of them.
const (
	maxDebFile  = 512 << 20 // bytes of one file
	maxDebTotal = 1 << 30   // bytes of all
	maxDebFiles = 100_000
)

// readDeb calls keep for every member of a .deb file's data archive and
// returns those that it accepts. dpkg-deb decompresses; nothing is unpacked to
// the disk, and no maintainer script runs.
func readDeb(ctx context.Context, deb string, keep func(path string) bool) ([]entry, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	cmd := exec.CommandContext(ctx, "dpkg-deb", "--fsys-tarfile", deb)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("unpack %s: %w", path.Base(deb), err)
	}
	entries, err := readTar(out, keep)
	if err != nil {
		cancel()
		_ = cmd.Wait()
		return nil, fmt.Errorf("unpack %s: %w", path.Base(deb), err)
	}
	if err := cmd.Wait(); err != nil {
		return nil, fmt.Errorf("unpack %s: %w: %s", path.Base(deb), err, bytes.TrimSpace(stderr.Bytes()))
	}
	return entries, nil
}

func readTar(r io.Reader, keep func(path string) bool) ([]entry, error) {
	var out []entry
	var total int64
	tr := tar.NewReader(r)
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			_, err = io.Copy(io.Discard, r) // let the writer end
			return out, err
		}
		if err != nil {
			return nil, err
		}
		p := path.Clean("/" + h.Name)
		if !keep(p) {
			continue
		}
		for k := range h.PAXRecords {
			if strings.HasPrefix(k, "GNU.sparse.") { // a small package with a large hole
				return nil, fmt.Errorf("%s is a sparse file", p)
			}
		}
		if len(out) >= maxDebFiles {
			return nil, fmt.Errorf("more than %d files", maxDebFiles)
		}
		e := entry{path: p, mode: h.FileInfo().Mode()}
		switch h.Typeflag {
		case tar.TypeDir:
		case tar.TypeSymlink:
			e.link = h.Linkname
		case tar.TypeReg:
			if h.Size > maxDebFile {
				return nil, fmt.Errorf("%s has %d bytes, more than %d", p, h.Size, maxDebFile)
			}
			if total += h.Size; total > maxDebTotal {
				return nil, fmt.Errorf("files of more than %d bytes", maxDebTotal)
			}
			if e.data, err = io.ReadAll(tr); err != nil {
				return nil, err
			}
		case tar.TypeLink:
			target := path.Clean("/" + h.Linkname)
			i := len(out) - 1
			for i >= 0 && out[i].path != target {
				i--
			}
			if i < 0 {
				return nil, fmt.Errorf("hard link %s to %s, which was not kept", p, target)
			}
			e.mode, e.data = out[i].mode, out[i].data
		default:
			return nil, fmt.Errorf("%s is of unsupported type %q", p, h.Typeflag)
		}
		out = append(out, e)
	}
}

// under reports whether p is dir or lies below it.
func under(p, dir string) bool { return p == dir || strings.HasPrefix(p, dir+"/") }
