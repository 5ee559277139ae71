// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/petri-sandbox/petri/bus"
	"github.com/petri-sandbox/petri/reporters/term"
	"github.com/petri-sandbox/petri/schemas"
)

// minDigest is how much of a digest must be written.
const minDigest = 8

// checkDigest reports why s is no digest, and no beginning of one.
func checkDigest(s string) error {
	if len(s) > 64 || len(s) < minDigest || strings.Trim(strings.ToLower(s), "0123456789abcdef") != "" {
		return usagef("%q is no digest: 64 hexadecimal digits, or the first %d and more of them", term.Clip(s, 80), minDigest)
	}
	return nil
}

// resolveDigest accepts a digest, or its beginning if only one artifact's
// begins so.
func resolveDigest(ctx context.Context, b *bus.Bus, s string) (bus.Found, error) {
	if d, err := schemas.ParseDigest(s); err == nil && !b.AsksDesk() {
		return bus.Found{SHA256: d}, nil // announced or not
	}
	found, err := b.FindArtifacts(ctx, b.Tenant(), strings.ToLower(s))
	switch {
	case err != nil:
		return bus.Found{}, err
	case len(found) == 0:
		return bus.Found{}, usagef("no artifact's digest begins with %s (petri artifacts ID lists an analysis' artifacts)", s)
	case len(found) > 1:
		return bus.Found{}, usagef("%s begins the digests of %d artifacts, such as %s and %s: write more of it", s, len(found), found[0].SHA256, found[1].SHA256)
	}
	return found[0], nil
}

// writeFile writes a file as a whole or not at all. What is no regular file, a
// device or a pipe, is written to as it is.
func writeFile(path string, write func(io.Writer) error) error {
	if fi, err := os.Stat(path); err == nil && fi.IsDir() {
		return usagef("write %s: it is a directory (name a file in it)", path)
	} else if err == nil && !fi.Mode().IsRegular() {
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			return usage(err)
		}
		return errors.Join(write(f), f.Close())
	} else if err == nil {
		if path, err = filepath.EvalSymlinks(path); err != nil { // the link stays
			return usage(err)
		}
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".petri-*") // 0600
	if errors.Is(err, os.ErrNotExist) {
		return usagef("write %s: there is no directory %s (make it, or choose another)", path, filepath.Dir(path))
	}
	if err != nil {
		return usage(fmt.Errorf("write %s: %w", path, err))
	}
	err = errors.Join(write(f), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		_ = os.Remove(f.Name())
	}
	return err
}
