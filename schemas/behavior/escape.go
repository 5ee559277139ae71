// SPDX-License-Identifier: Apache-2.0

package behavior

import (
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Printable makes text that a sample chose fit for JSON and terminals without
// losing anything of it: a backslash becomes \\, a byte that is no UTF-8 or a
// control character \xNN, any other character that cannot be printed \uNNNN or
// \UNNNNNNNN.
func Printable(s string) string {
	clean := true
	for _, r := range s {
		if !printable(r) {
			clean = false
			break
		}
	}
	if clean {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); {
		r, n := utf8.DecodeRuneInString(s[i:])
		switch {
		case r == utf8.RuneError && n == 1, r < 0x20, r == 0x7f:
			b.WriteString(`\x` + digits(uint64(s[i]), 2))
		case r == '\\':
			b.WriteString(`\\`)
		case printable(r) || r == utf8.RuneError:
			b.WriteString(s[i : i+n])
		case r > 0xffff:
			b.WriteString(`\U` + digits(uint64(r), 8))
		default:
			b.WriteString(`\u` + digits(uint64(r), 4))
		}
		i += n
	}
	return b.String()
}

// printable reports whether a character stays as it is. What changes the
// direction of text or takes no room does not.
func printable(r rune) bool {
	return r != '\\' && r != utf8.RuneError && unicode.IsPrint(r)
}

func digits(v uint64, n int) string {
	s := strconv.FormatUint(v, 16)
	return strings.Repeat("0", max(0, n-len(s))) + s
}
