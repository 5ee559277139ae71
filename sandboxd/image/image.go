// SPDX-License-Identifier: Apache-2.0

// Package image builds and keeps the guests' images: a kernel and an
// initramfs per CPU, made from Debian's packages and our own guest agent. Where
// Debian has no port to a CPU, the kernel and busybox are compiled.
//
// An image is a pure function of its [Manifest]: the same packages, agent and
// recipe give the same bytes. Building has two halves. [Builder.Fetch] asks apt
// for packages and needs the network; [Builder.Assemble] needs only what Fetch
// left in the cache, so a new agent never needs the network again. What must be
// compiled is compiled between the two, by [Builder.Build] only. The host's
// own dpkg is neither read nor changed. The package starts no machine.
package image

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sort"

	"github.com/petri-sandbox/petri/sandboxd/catalogue"
)

// ErrNoImage says that an architecture has no built image. The message of the
// wrapping error names the command that builds one.
var ErrNoImage = errors.New("no guest image")

// ErrNoAgent says that the agent of an architecture's guest is not beside the
// program. The message of the wrapping error names the command that makes it.
var ErrNoAgent = errors.New("read the guest agent")

// recipe is the version of the code that turns packages into bytes. It is part
// of every image's key: raise it when Assemble would give other bytes.
const recipe = 4

// A Package is one Debian package that went into an image.
type Package struct {
	Name    string `json:"name"`
	Version string `json:"version"`
	Arch    string `json:"arch"`
	SHA256  string `json:"sha256"` // of the .deb file, hex
}

// A Compiled is a file that was compiled from a package of source.
type Compiled struct {
	Name     string `json:"name"` // kernel or busybox
	SHA256   string `json:"sha256"`
	Release  string `json:"release,omitempty"` // uname -r, of a kernel
	Compiler string `json:"compiler"`          // what it says of itself
	Made     string `json:"made"`              // digest of the sources and of how they were compiled
}

// A File is one file of a built image.
type File struct {
	Name   string `json:"name"` // base name inside the image's directory
	Size   int64  `json:"size"` // bytes
	SHA256 string `json:"sha256"`
}

// A Manifest says what an image was made of and what came out.
type Manifest struct {
	Schema   string    `json:"schema"`         // petri.image.v1
	Arch     string    `json:"arch"`           // Debian's name of the CPU: amd64, …
	With     string    `json:"with,omitempty"` // what it has besides: python3
	Recipe   int       `json:"recipe"`
	Packages []Package `json:"packages"` // kernel first, then by name
	// Compiled is what was compiled for a CPU that Debian has no port to.
	Compiled []Compiled `json:"compiled,omitempty"`
	Guestd   string     `json:"guestd"` // sha256 of the agent, hex

	KernelRelease string   `json:"kernel_release"` // uname -r
	Modules       []string `json:"modules"`        // in loading order
	Kernel        File     `json:"kernel"`
	Initramfs     File     `json:"initramfs"`
}

// Guest is the name of the guest that the image is of: amd64, or amd64+python3.
func (m *Manifest) Guest() string { return catalogue.With(m.Arch, m.With) }

// Key names the image by what goes into it, not by what came out.
func (m *Manifest) Key() string {
	h := sha256.New()
	fmt.Fprintf(h, "petri.image.v1\n%s\n%d\n%s\n", m.Arch, m.Recipe, m.Guestd)
	for _, p := range m.Packages {
		fmt.Fprintf(h, "%s %s %s %s\n", p.Name, p.Version, p.Arch, p.SHA256)
	}
	for _, c := range m.Compiled {
		fmt.Fprintf(h, "%s %s\n", c.Name, c.SHA256)
	}
	return hex.EncodeToString(h.Sum(nil))
}

// An Image is a built image on disk.
type Image struct {
	Manifest
	Dir string
}

// KernelPath is the file that QEMU boots.
func (i *Image) KernelPath() string { return filepath.Join(i.Dir, i.Kernel.Name) }

// InitramfsPath is the guest's first file system.
func (i *Image) InitramfsPath() string { return filepath.Join(i.Dir, i.Initramfs.Name) }

// Verify reads both files and compares them with the manifest. An image that
// a full disk or a bad sector has changed boots into confusion; Verify makes
// it an error that names the command that mends it.
func (i *Image) Verify() error {
	for _, f := range []File{i.Kernel, i.Initramfs} {
		got, n, err := hashFile(filepath.Join(i.Dir, f.Name))
		if err != nil {
			return fmt.Errorf("read guest image %s: %w (rebuild it: petri guest build %s --force)", i.Guest(), err, i.Guest())
		}
		if got != f.SHA256 || n != f.Size {
			return fmt.Errorf("guest image %s is corrupt: %s does not match its manifest (rebuild it: petri guest build %s --force)", i.Guest(), f.Name, i.Guest())
		}
	}
	return nil
}

// List returns every built image under the cache directory, sorted by
// architecture and key. Directories without a readable manifest are left out:
// they are builds that were cut short.
func List(cache string) ([]*Image, error) {
	dirs, err := filepath.Glob(filepath.Join(cache, "guests", "*", "*", "manifest.json"))
	if err != nil {
		return nil, err
	}
	sort.Strings(dirs)
	var out []*Image
	for _, d := range dirs {
		img, err := load(filepath.Dir(d))
		if err != nil {
			continue
		}
		out = append(out, img)
	}
	return out, nil
}

func load(dir string) (*Image, error) {
	b, err := os.ReadFile(filepath.Join(dir, "manifest.json"))
	if err != nil {
		return nil, err
	}
	img := &Image{Dir: dir}
	if err := json.Unmarshal(b, &img.Manifest); err != nil {
		return nil, fmt.Errorf("read %s: %w", filepath.Join(dir, "manifest.json"), err)
	}
	return img, nil
}

func hashFile(path string) (sum string, size int64, err error) {
	f, err := os.Open(path)
	if err != nil {
		return "", 0, err
	}
	defer f.Close()
	h := sha256.New()
	n, err := io.Copy(h, f)
	if err != nil {
		return "", 0, err
	}
	return hex.EncodeToString(h.Sum(nil)), n, nil
}
