// SPDX-License-Identifier: Apache-2.0

package main_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestAsyncAPIRefs follows every reference of the AsyncAPI document, within it
// and to the schemas beside it.
func TestAsyncAPIRefs(t *testing.T) {
	dir := filepath.Join(source, "json")
	b, err := os.ReadFile(filepath.Join(dir, "asyncapi.json"))
	if err != nil {
		t.Fatal(err)
	}
	var doc any
	if err := json.Unmarshal(b, &doc); err != nil {
		t.Fatal(err)
	}
	n := 0
	var walk func(v any)
	walk = func(v any) {
		switch v := v.(type) {
		case []any:
			for _, e := range v {
				walk(e)
			}
		case map[string]any:
			for k, e := range v {
				if target, ok := e.(string); ok && k == "$ref" {
					n++
					if !resolves(doc, dir, target) {
						t.Errorf("%s leads nowhere", target)
					}
				}
				walk(e)
			}
		}
	}
	walk(doc)
	if n == 0 {
		t.Error("the document has no reference")
	}
}

func resolves(doc any, dir, target string) bool {
	path, ok := strings.CutPrefix(target, "#/")
	if !ok {
		_, err := os.Stat(filepath.Join(dir, target))
		return err == nil
	}
	for _, key := range strings.Split(path, "/") {
		m, _ := doc.(map[string]any)
		if doc, ok = m[key]; !ok {
			return false
		}
	}
	return true
}
