// SPDX-License-Identifier: Apache-2.0

package protocol

import (
	"errors"
	"strings"
)

// Split cuts a command line into words, as a person expects: at blanks, with
// single quotes, double quotes and the backslash. Nothing else means anything:
// no variables, no wildcards, no shell.
func Split(s string) ([]string, error) {
	var words []string
	var word strings.Builder
	in, quote := false, rune(0)
	escaped := false
	for _, r := range s {
		switch {
		case escaped:
			word.WriteRune(r)
			escaped = false
		case r == '\\' && quote != '\'':
			escaped, in = true, true
		case quote != 0:
			if r == quote {
				quote = 0
			} else {
				word.WriteRune(r)
			}
		case r == '\'' || r == '"':
			quote, in = r, true
		case r == ' ' || r == '\t' || r == '\n':
			if in {
				words = append(words, word.String())
				word.Reset()
				in = false
			}
		default:
			word.WriteRune(r)
			in = true
		}
	}
	switch {
	case quote != 0:
		return nil, errors.New("a quote is not closed")
	case escaped:
		return nil, errors.New("a backslash at the end escapes nothing")
	}
	if in {
		words = append(words, word.String())
	}
	return words, nil
}
