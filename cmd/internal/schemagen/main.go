// SPDX-License-Identifier: Apache-2.0

// Schemagen writes the JSON Schemas of package schemas, an example for each,
// and the index of them. It runs in the directory of package schemas, whose
// source it reads for the comments.
package main

import (
	"flag"
	"fmt"
	"os"

	"github.com/petri-sandbox/petri/cmd/internal/schemagen/generate"
)

func main() {
	source := flag.String("source", ".", "directory of package schemas")
	out := flag.String("o", "json", "directory to write to; other .json files in it are removed")
	flag.Parse()
	files, err := generate.Files(*source)
	if err == nil {
		err = generate.Write(*out, files)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "schemagen:", err)
		os.Exit(1)
	}
}
