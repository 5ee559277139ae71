// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"
)

// A row of docs/faults.md: a fault, and the tests that bring it about.
type row struct {
	n     int // from 1
	fault string
	tests []test
}

// test is a test of a package, whose directory is below the module's root.
type test struct{ pkg, name string }

// is reports whether a row is one of those that are asked for, by its number or by
// what its fault says.
func (r row) is(asked string) bool {
	if _, err := strconv.Atoi(asked); err == nil {
		return asked == strconv.Itoa(r.n)
	}
	return strings.Contains(r.fault, asked)
}

// word finds packages, in backticks, and tests in the second column.
var word = regexp.MustCompile("`([a-z]+(?:/[a-z]+)*)`|\\b(Test[A-Za-z0-9]+)\\b")

// readRows reads the table of faults.
func readRows(path string) ([]row, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var rows []row
	for _, line := range strings.Split(string(text), "\n") {
		cells := strings.Split(strings.Trim(line, "| "), " | ")
		if !strings.HasPrefix(line, "|") || len(cells) != 2 || cells[0] == "fault" {
			continue
		}
		r := row{n: len(rows) + 1, fault: cells[0]}
		pkg := ""
		for _, m := range word.FindAllStringSubmatch(cells[1], -1) {
			switch {
			case m[1] != "":
				pkg = m[1]
			case pkg == "":
				return nil, fmt.Errorf("%s: row %d names %s before its package", path, r.n, m[2])
			default:
				r.tests = append(r.tests, test{pkg, m[2]})
			}
		}
		if len(r.tests) == 0 {
			return nil, fmt.Errorf("%s: row %d names no test", path, r.n)
		}
		rows = append(rows, r)
	}
	if len(rows) == 0 {
		return nil, fmt.Errorf("%s has no table of faults", path)
	}
	return rows, nil
}
