// SPDX-License-Identifier: Apache-2.0

package image

import (
	"bytes"
	"debug/elf"
	"fmt"
	"path"
	"strings"
)

// moduleOrder returns the paths of the wanted modules and of all that they
// depend on, each after its dependencies. files are the kernel package's
// files by path. Wanted names that are not there are taken as built in.
//
// It reads each module's own .modinfo, as depmod does, so that no kmod is
// needed on the host and none of the host's own modules can be mixed in.
func moduleOrder(files map[string][]byte, wanted []string) ([]string, error) {
	byName := map[string]string{}
	for p := range files {
		if base, ok := strings.CutSuffix(path.Base(p), ".ko"); ok {
			byName[moduleName(base)] = p
		}
	}
	var order []string
	seen := map[string]bool{}
	var visit func(name string, depth int) error
	visit = func(name string, depth int) error {
		p, ok := byName[moduleName(name)]
		if !ok || seen[p] {
			return nil
		}
		if depth > 32 {
			return fmt.Errorf("module dependencies of %s are nested deeper than 32", name)
		}
		seen[p] = true
		deps, err := moduleDeps(files[p])
		if err != nil {
			return fmt.Errorf("read module %s: %w", p, err)
		}
		for _, d := range deps {
			if err := visit(d, depth+1); err != nil {
				return err
			}
		}
		order = append(order, p)
		return nil
	}
	for _, w := range wanted {
		if err := visit(w, 0); err != nil {
			return nil, err
		}
	}
	return order, nil
}

// moduleName folds - and _, which the kernel treats as one.
func moduleName(s string) string { return strings.ReplaceAll(s, "-", "_") }

// maxModinfo bounds what a module says of itself, in bytes.
const maxModinfo = 1 << 20

func moduleDeps(ko []byte) ([]string, error) {
	f, err := elf.NewFile(bytes.NewReader(ko))
	if err != nil {
		return nil, err
	}
	s := f.Section(".modinfo")
	if s == nil {
		return nil, fmt.Errorf("no .modinfo section")
	}
	if s.Size > maxModinfo {
		return nil, fmt.Errorf(".modinfo section of %d bytes", s.Size)
	}
	info, err := s.Data()
	if err != nil {
		return nil, err
	}
	for _, field := range strings.Split(string(info), "\x00") {
		if d, ok := strings.CutPrefix(field, "depends="); ok && d != "" {
			return strings.Split(d, ","), nil
		}
	}
	return nil, nil
}
