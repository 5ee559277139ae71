// SPDX-License-Identifier: Apache-2.0

// Package command makes an analyzer of any program: it gets the artifact's bytes
// on standard input or as a file, and prints findings as lines of JSON.
//
// [New] takes the definition of such an analyzer and says what its
// configuration is worth: the arguments, the limits and the bytes of the files
// that they name. The program is started by the runner's child, under the limits
// that this has put on itself, without a shell and with an environment that is
// always the same. Nothing that a sample chose becomes an argument. What the
// program prints is checked line by line; one line that is wrong fails the task.
package command

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/petri-sandbox/petri/analyzers"
	"github.com/petri-sandbox/petri/schemas"
)

// Limits of a definition that says nothing of them.
const (
	DefaultVersion   = "1.0.0"
	DefaultMemory    = 256 << 20
	DefaultCPU       = 30 * time.Second
	DefaultTimeout   = time.Minute
	DefaultMaxInput  = 1 << 30
	DefaultMaxOutput = 8 << 20
	DefaultProcesses = 16
)

// Exit codes that mean something; 0 is done and every other one failed.
const (
	// ExitSkip says that the artifact is not for this analyzer. It is what
	// automake's tests end with that are skipped.
	ExitSkip = 77
)

// Placeholders in arguments.
const (
	fileHolder   = "{file}"
	kindHolder   = "{kind}"
	sha256Holder = "{sha256}"
)

// maxFile bounds a file that an argument names, in bytes.
const maxFile = 256 << 20

// Define completes what a user has asked for: the defaults, the program looked up
// in PATH and seen from the directory dir, and the digests of the files that the
// arguments name.
func Define(d schemas.Definition, dir string) (schemas.Definition, error) {
	d.Schema = schemas.DefinitionSchema
	set := func(v *int64, n int64) {
		if *v == 0 {
			*v = n
		}
	}
	set(&d.Memory, DefaultMemory)
	set(&d.MaxInput, DefaultMaxInput)
	set(&d.MaxOutput, DefaultMaxOutput)
	set((*int64)(&d.CPU), int64(DefaultCPU))
	set((*int64)(&d.Timeout), int64(DefaultTimeout))
	if d.Version == "" {
		d.Version = DefaultVersion
	}
	if d.Processes == 0 {
		d.Processes = DefaultProcesses
	}
	if len(d.Argv) == 0 {
		return d, errors.New("no command is named (put it behind --)")
	}
	var err error
	if d.Dir, err = filepath.Abs(dir); err != nil {
		return d, fmt.Errorf("find the directory: %w", err)
	}
	d.Argv = append([]string(nil), d.Argv...)
	if d.Argv[0], err = program(d.Argv[0], d.Dir); err != nil {
		return d, err
	}
	if err := checkScript(d); err != nil {
		return d, err
	}
	if d.Files, err = digests(d); err != nil {
		return d, err
	}
	if err := d.Check(); err != nil {
		return d, err
	}
	a, err := New(d)
	if err != nil {
		return d, err
	}
	return d, a.Info().Check()
}

// program finds a program as a shell does.
func program(name, dir string) (string, error) {
	if strings.Contains(name, "/") {
		if !filepath.IsAbs(name) {
			name = filepath.Join(dir, name)
		}
		st, err := os.Stat(name)
		if err != nil {
			return "", fmt.Errorf("there is no program %s: %w (name one of this host by its whole path)", name, cause(err))
		}
		if st.IsDir() || st.Mode()&0o111 == 0 {
			return "", fmt.Errorf("%s cannot be executed (chmod +x it, or name its interpreter first)", name)
		}
		return name, nil
	}
	found, err := exec.LookPath(name)
	if err != nil {
		return "", fmt.Errorf("there is no program %q in PATH: %w (install it on this host, or name it by its whole path)", name, cause(err))
	}
	return filepath.Abs(found)
}

// cause is an error without what it says of paths and calls.
func cause(err error) error {
	var path *fs.PathError
	var look *exec.Error
	switch {
	case errors.As(err, &path):
		return path.Err
	case errors.As(err, &look):
		return look.Err
	}
	return err
}

// interpreters are programs whose first argument, if it is no option, is a script.
// A version may follow the name.
var interpreters = []string{"python", "perl", "sh", "bash", "dash", "node", "ruby", "php", "lua"}

// checkScript reports an error if the command is a script that is not there.
func checkScript(d schemas.Definition) error {
	name := strings.TrimRight(filepath.Base(d.Argv[0]), "0123456789.")
	if len(d.Argv) < 2 || strings.HasPrefix(d.Argv[1], "-") || strings.Contains(d.Argv[1], fileHolder) || !slices.Contains(interpreters, name) {
		return nil
	}
	script := d.Argv[1]
	if !filepath.IsAbs(script) {
		script = filepath.Join(d.Dir, script)
	}
	st, err := os.Stat(script)
	switch {
	case err != nil:
		return fmt.Errorf("there is no script %s for %s: %w (name one of this host by its whole path)", script, name, cause(err))
	case !st.Mode().IsRegular():
		return fmt.Errorf("%s, which %s is to run, is no file (name the script by its whole path)", script, name)
	}
	return nil
}

// named lists the files that a definition's arguments name, the program first.
func named(d schemas.Definition) []string {
	out := []string{d.Argv[0]}
	for _, a := range d.Argv[1:] {
		if a == "" || strings.Contains(a, fileHolder) {
			continue
		}
		if !filepath.IsAbs(a) {
			a = filepath.Join(d.Dir, a)
		}
		if st, err := os.Stat(a); err == nil && st.Mode().IsRegular() {
			out = append(out, a)
		}
	}
	return out
}

func digests(d schemas.Definition) ([]schemas.FileDigest, error) {
	var out []schemas.FileDigest
	for _, path := range named(d) {
		sum, err := digest(path)
		if err != nil {
			return nil, err
		}
		out = append(out, schemas.FileDigest{Path: path, SHA256: sum})
	}
	return out, nil
}

func digest(path string) (schemas.Digest, error) {
	f, err := os.Open(path)
	if err != nil {
		return schemas.Digest{}, fmt.Errorf("read a file of the command: %w", err)
	}
	defer f.Close()
	h := sha256.New()
	n, err := io.Copy(h, io.LimitReader(f, maxFile+1))
	if err != nil {
		return schemas.Digest{}, fmt.Errorf("read %s: %w", path, err)
	}
	if n > maxFile {
		return schemas.Digest{}, fmt.Errorf("%s has more than %d bytes", path, maxFile)
	}
	return schemas.Digest(h.Sum(nil)), nil
}

// Analyzer is an analyzer that is a command. The zero value stands in a child's
// list for all of them, and does nothing else.
type Analyzer struct {
	def    schemas.Definition
	config schemas.Digest
}

var (
	_ analyzers.Analyzer    = Analyzer{}
	_ analyzers.Configured  = Analyzer{}
	_ analyzers.Maker       = Analyzer{}
	_ analyzers.Preflighter = Analyzer{}
)

// New returns the analyzer of a complete definition, see [Define]. It does not
// look at the files that the definition names.
func New(d schemas.Definition) (Analyzer, error) {
	if err := d.Check(); err != nil {
		return Analyzer{}, fmt.Errorf("definition of %.40q: %w", d.Name, err)
	}
	if d.Removed {
		return Analyzer{}, fmt.Errorf("definition of %.40q: it says that the analyzer is removed", d.Name)
	}
	b, err := json.Marshal(d)
	if err != nil {
		return Analyzer{}, fmt.Errorf("encode definition: %w", err)
	}
	return Analyzer{def: d, config: schemas.Sum(b)}, nil
}

// Info implements [analyzers.Analyzer].
func (a Analyzer) Info() analyzers.Info {
	if a.def.Name == "" {
		return analyzers.Info{}
	}
	return analyzers.Info{
		Name: a.def.Name, Version: a.def.Version, Config: &a.config, Kinds: a.def.Kinds,
		Impure:   a.def.Network,
		Deadline: a.def.Timeout.D(), Memory: a.def.Memory, CPU: a.def.CPU.D(), Exec: true,
		Network: a.def.Network, Processes: a.def.Processes, MaxInput: a.def.MaxInput,
	}
}

// Configuration implements [analyzers.Configured].
func (a Analyzer) Configuration() ([]byte, error) { return json.Marshal(a.def) }

// Make implements [analyzers.Maker].
func (Analyzer) Make(configuration []byte) (analyzers.Analyzer, error) {
	var d schemas.Definition
	if err := json.Unmarshal(configuration, &d); err != nil {
		return nil, fmt.Errorf("read definition: %w", err)
	}
	return New(d)
}

// Changed reports, as an error, a file that the definition names and that is not
// what it was, or is not there.
func (a Analyzer) Changed() error {
	for _, f := range a.def.Files {
		sum, err := digest(f.Path)
		if err != nil {
			return err
		}
		if sum != f.SHA256 {
			return fmt.Errorf("%s has changed since the analyzer was defined: what it finds now would pass for the old one's (define it again: petri analyzers add %s)", f.Path, a.def.Name)
		}
	}
	return nil
}

// Reachable is that of the definition.
func (a Analyzer) Reachable() error { return Reachable(a.def) }

// Reachable reports, as an error, a file or directory of a definition that the
// user nobody, who it runs as if the runner is root, may not read.
func Reachable(d schemas.Definition) error {
	if os.Geteuid() != 0 {
		return nil
	}
	for _, f := range append([]string{d.Dir}, named(d)...) {
		if err := readable(f); err != nil {
			return err
		}
	}
	return nil
}

// readable follows a path, and every link in it, as somebody without any rights.
func readable(path string) error {
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return fmt.Errorf("find %s: %w", path, err)
	}
	for p, need := real, fs.FileMode(0o4); ; p, need = filepath.Dir(p), 0o1 {
		st, err := os.Stat(p)
		if err != nil {
			return fmt.Errorf("find %s: %w", p, err)
		}
		if st.IsDir() {
			need = 0o1
		}
		if st.Mode()&need != need {
			return fmt.Errorf("%s is not open to everybody (mode %v of %s), and the command runs as nobody: move it to where all may read it, such as /usr/local/lib", path, st.Mode().Perm(), p)
		}
		if p == "/" {
			return nil
		}
	}
}

// Describe says what holds for the command, for people.
func (a Analyzer) Describe() string {
	network := "none"
	if a.def.Network {
		network = "the host's"
	}
	in := "standard input"
	if strings.Contains(strings.Join(a.def.Argv, " "), fileHolder) {
		in = "a file"
	}
	return fmt.Sprintf("artifact as %s of at most %d MiB; memory %d MiB, CPU time %s, %s in all, output %d MiB, %d processes; network: %s",
		in, a.def.MaxInput>>20, a.def.Memory>>20, a.def.CPU.D(), a.def.Timeout.D(), a.def.MaxOutput>>20, a.def.Processes, network)
}
