// SPDX-License-Identifier: Apache-2.0

package catalogue

import (
	"path"
	"slices"
)

// An Extra is what a guest can have besides: an interpreter that is too large to
// be in the memory of every guest. A guest with it is another one, with an image
// and templates of its own, for the samples that ask for it.
type Extra struct {
	Name     string
	Programs []string // what a sample asks for it by, in /usr/bin
	Packages []string // Debian's, with what they need
	// Env is the sample's environment besides.
	Env map[string]string
}

var extras = []Extra{
	{
		Name: "python3", Programs: []string{"python3", "python3.11"},
		// Of what the standard library needs, the libraries of the terminal's
		// modules, of Berkeley DB and of NIS are left out.
		Packages: []string{
			"python3-minimal", "python3.11-minimal", "libpython3.11-minimal", "libpython3.11-stdlib",
			"libbz2-1.0", "libexpat1", "libffi8", "liblzma5", "libsqlite3-0", "libuuid1",
		},
		// Where Debian installs it, all is compiled already. Here each import would
		// write a file in the sample's name.
		Env: map[string]string{"PYTHONDONTWRITEBYTECODE": "1"},
	},
}

// With names the guest of an architecture that has an extra besides, or if that
// is empty the usual one.
func With(arch, extra string) string {
	if extra == "" {
		return arch
	}
	return arch + "+" + extra
}

// Extras lists the guests with something besides that scripts can ask for.
func Extras() []string {
	var out []string
	for _, e := range extras {
		out = append(out, With(Default, e.Name))
	}
	return out
}

// ExtraFor names the extra that a program is part of, which is a path or a name
// to look for; empty: it is part of none.
func ExtraFor(program string) string {
	switch dir, name := path.Split(program); dir {
	case "", "/bin/", "/usr/bin/":
		for _, e := range extras {
			if slices.Contains(e.Programs, name) {
				return e.Name
			}
		}
	}
	return ""
}

func extraNames() []string {
	var out []string
	for _, e := range extras {
		out = append(out, e.Name)
	}
	return out
}
