// SPDX-License-Identifier: Apache-2.0

package schemas

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// DefinitionSchema is the schema field of a [Definition].
const DefinitionSchema = "petri.definition.v1"

// Definition says how an analyzer that is a command of the user's is run. It is
// kept beside the log, and every node that may start analyzers follows it.
type Definition struct {
	Schema  string   `json:"schema"` // petri.definition.v1
	Name    string   `json:"name"`
	Removed bool     `json:"removed,omitempty"` // an analyzer that Petri brings is not to run; then nothing else is set
	Version string   `json:"version,omitempty"`
	Kinds   []Kind   `json:"kinds,omitempty"`
	Argv    []string `json:"argv,omitempty"` // program and arguments; {file}, {kind} and {sha256} stand for what they say
	Dir     string   `json:"dir,omitempty"`  // absolute; where it runs

	Memory    int64    `json:"memory,omitempty"`     // bytes of each process
	CPU       Duration `json:"cpu,omitempty"`        // of each process
	Timeout   Duration `json:"timeout,omitempty"`    // of a task
	MaxInput  int64    `json:"max_input,omitempty"`  // bytes of an artifact
	MaxOutput int64    `json:"max_output,omitempty"` // bytes on standard output
	Processes int      `json:"processes,omitempty"`  // that run at once
	Network   bool     `json:"network,omitempty"`    // it may use the host's

	Files []FileDigest `json:"files,omitempty"` // the program and the files among the arguments, as they were
}

// FileDigest is a file by its name and its bytes.
type FileDigest struct {
	Path   string `json:"path"`
	SHA256 Digest `json:"sha256"`
}

// Limits of a [Definition].
const (
	maxArgs    = 256
	maxArgSize = 64 << 10 // bytes of all arguments
	maxTimeout = 24 * time.Hour
)

// Check reports what is wrong with a definition, with its limits filled in.
func (d *Definition) Check() error {
	if err := CheckAnalyzer(d.Name); err != nil {
		return err
	}
	if d.Removed {
		return nil
	}
	size := 0
	for _, a := range d.Argv {
		size += len(a)
		if strings.ContainsRune(a, 0) {
			return fmt.Errorf("argv: argument %.80q holds a zero byte", a)
		}
	}
	switch {
	case d.Schema != DefinitionSchema:
		return fmt.Errorf("schema %.80q is not %s", d.Schema, DefinitionSchema)
	case len(d.Kinds) == 0 || len(d.Kinds) > 32:
		return fmt.Errorf("kinds: %d are named; 1 to 32 are allowed", len(d.Kinds))
	case len(d.Argv) == 0 || d.Argv[0] == "" || len(d.Argv) > maxArgs || size > maxArgSize:
		return fmt.Errorf("argv: %d arguments of %d bytes; 1 to %d of %d are allowed", len(d.Argv), size, maxArgs, maxArgSize)
	case !filepath.IsAbs(d.Argv[0]) || !filepath.IsAbs(d.Dir):
		return fmt.Errorf("argv: the program %.80q and its directory %.80q must be absolute paths", d.Argv[0], d.Dir)
	case d.Memory < 16<<20 || d.Memory > 1<<40:
		return fmt.Errorf("memory: %d bytes are not between 16 MiB and 1 TiB", d.Memory)
	case d.Timeout <= 0 || d.Timeout.D() > maxTimeout:
		return fmt.Errorf("timeout: %s is not between 0 and %s", d.Timeout.D(), maxTimeout)
	case d.CPU <= 0 || d.CPU.D() > 64*maxTimeout:
		return fmt.Errorf("cpu: %s is not between 0 and %s", d.CPU.D(), 64*maxTimeout)
	case d.MaxInput <= 0 || d.MaxOutput <= 0 || d.MaxOutput > 1<<30:
		return fmt.Errorf("max_input and max_output: %d and %d bytes; they must be more than none, and output at most 1 GiB", d.MaxInput, d.MaxOutput)
	case d.Processes < 1 || d.Processes > 4096:
		return fmt.Errorf("processes: %d is not between 1 and 4096", d.Processes)
	case len(d.Files) > maxArgs:
		return fmt.Errorf("files: %d are named; %d are allowed", len(d.Files), maxArgs)
	}
	for _, k := range d.Kinds {
		if err := CheckKind(k); err != nil {
			return err
		}
	}
	if kinds := slices.Sorted(slices.Values(d.Kinds)); len(slices.Compact(kinds)) < len(d.Kinds) {
		return fmt.Errorf("kinds: one of %v is named twice", d.Kinds)
	}
	return nil
}
