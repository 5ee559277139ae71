// SPDX-License-Identifier: Apache-2.0

// Package generate makes JSON Schemas out of the types of package schemas, and
// the files that are committed beside them. The same source gives the same
// bytes. It is the only package that knows the library behind, so that nothing
// that ships links it.
package generate

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"

	"github.com/petri-sandbox/petri/cmd/internal/schemagen/examples"
	"github.com/petri-sandbox/petri/schemas"
)

// Files returns every generated file under its path relative to schemas/json.
// source is the directory of package schemas.
func Files(source string) (map[string][]byte, error) {
	src, err := readSource(source)
	if err != nil {
		return nil, err
	}
	files, used := map[string][]byte{}, map[string]bool{}
	index := index{Envelope: schemas.EnvelopeSchema, Custom: schemas.CustomType, Types: map[string]indexEntry{}}
	for _, t := range schemas.Types() {
		s, err := schema(src, t, used)
		if err != nil {
			return nil, fmt.Errorf("schema of %s: %w", t.Name, err)
		}
		entry := indexEntry{Form: t.Form, File: t.Name + ".json", Example: "examples/" + t.Name + ".json"}
		if files[entry.File], err = encode(s); err != nil {
			return nil, fmt.Errorf("schema of %s: %w", t.Name, err)
		}
		ex, err := examples.Of(t)
		if err != nil {
			return nil, err
		}
		if files[entry.Example], err = encode(ex); err != nil {
			return nil, fmt.Errorf("example of %s: %w", t.Name, err)
		}
		index.Types[t.Name] = entry
	}
	for key := range limits {
		if !used[key] {
			return nil, fmt.Errorf("limit of %s: there is no such field", key)
		}
	}
	if files["index.json"], err = encode(index); err != nil {
		return nil, err
	}
	files["asyncapi.json"], err = asyncAPI()
	return files, err
}

// index is index.json: where the schema of which type is.
type index struct {
	Envelope string                `json:"envelope"` // of every event
	Custom   string                `json:"custom"`   // of the context events that are not listed
	Types    map[string]indexEntry `json:"types"`
}

type indexEntry struct {
	Form    schemas.Form `json:"form"`
	File    string       `json:"file"`
	Example string       `json:"example"`
}

// Write makes dir hold these files and no other .json files.
func Write(dir string, files map[string][]byte) error {
	for path, b := range files {
		path = filepath.Join(dir, path)
		if have, err := os.ReadFile(path); err == nil && bytes.Equal(have, b) {
			continue
		}
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, b, 0o644); err != nil {
			return err
		}
	}
	have, err := Committed(dir)
	if err != nil {
		return err
	}
	for _, path := range have {
		if _, ok := files[path]; !ok {
			if err := os.Remove(filepath.Join(dir, path)); err != nil {
				return err
			}
		}
	}
	return nil
}

// Committed lists the generated files that dir holds, sorted.
func Committed(dir string) ([]string, error) {
	var out []string
	for _, pattern := range []string{"*.json", "examples/*.json"} {
		paths, err := filepath.Glob(filepath.Join(dir, pattern))
		if err != nil {
			return nil, err
		}
		for _, p := range paths {
			rel, err := filepath.Rel(dir, p)
			if err != nil {
				return nil, err
			}
			out = append(out, filepath.ToSlash(rel))
		}
	}
	slices.Sort(out)
	return out, nil
}

// encode writes indented JSON in which <, > and & stand as they are.
func encode(v any) ([]byte, error) {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return nil, err
	}
	plain := b
	for escaped, c := range map[string]string{`\u003c`: "<", `\u003e`: ">", `\u0026`: "&"} {
		plain = bytes.ReplaceAll(plain, []byte(escaped), []byte(c))
	}
	var want, got any
	if err := json.Unmarshal(b, &want); err != nil {
		return nil, err
	}
	if json.Unmarshal(plain, &got) != nil || !reflect.DeepEqual(want, got) {
		plain = b // a backslash of the text's own stood before one of them
	}
	return append(plain, '\n'), nil
}
