// SPDX-License-Identifier: Apache-2.0

package schemas

import (
	"fmt"
	"strings"
)

// DefaultTenant is the tenant of an installation that has only one.
const DefaultTenant = "default"

// LiveRun is the run of analyzers that follow analyses as they happen. Replays
// have runs of their own.
const LiveRun = "live"

// A Kind says what an artifact's bytes are.
type Kind string

// The kinds that Petri itself announces. Analyzers may derive others.
const (
	KindSample     Kind = "sample"     // the bytes under analysis
	KindMemory     Kind = "memory"     // an ELF core of the guest's RAM
	KindPcap       Kind = "pcap"       // a [Manifest] of pcapng segments
	KindTrace      Kind = "trace"      // a [Manifest] of trace segments (package trace)
	KindConsole    Kind = "console"    // what the sample or the kernel printed
	KindDropped    Kind = "dropped"    // a file that the sample left behind
	KindDrops      Kind = "drops"      // the list of all files left behind, a [DropList]
	KindScreenshot Kind = "screenshot" // a picture of the guest's display
	KindTemplate   Kind = "template"   // what a warm machine was restored from, a [Template]
)

// CheckKind reports why s is no kind.
func CheckKind(s Kind) error { return checkName("kind", string(s), 32, "-") }

// CheckAnalyzer reports why s is no analyzer's name: it must match
// [a-z][a-z0-9-]{0,31}.
func CheckAnalyzer(s string) error { return checkName("analyzer name", s, 32, "-") }

// CheckGate reports why s is no gate's name: it must match [a-z][a-z0-9-]{0,31}.
func CheckGate(s string) error { return checkName("gate", s, 32, "-") }

// CheckTenant reports why s is no tenant's name.
func CheckTenant(s string) error { return checkName("tenant", s, 32, "-") }

// CheckProfile reports why s is no profile's name: it must match
// [a-z][a-z0-9-]{0,31}.
func CheckProfile(s string) error { return checkName("profile", s, 32, "-") }

// CheckEventName reports why s is no context event's name: it must match
// [a-z][a-z0-9_]{0,63}.
func CheckEventName(s string) error { return checkName("event name", s, 64, "_") }

// CheckRun reports why s is no run: live, or r- and a ULID.
func CheckRun(s string) error {
	if s == LiveRun {
		return nil
	}
	if id, ok := strings.CutPrefix(s, "r-"); ok && ValidID(id) {
		return nil
	}
	return fmt.Errorf("run %.80q is neither live nor r-<id>", s)
}

// CheckID reports why s names no analysis.
func CheckID(s string) error {
	if !ValidID(s) {
		return fmt.Errorf("%.80q is not an analysis id (26 characters, as `petri list` prints them)", s)
	}
	return nil
}

func checkName(what, s string, limit int, extra string) error {
	if s == "" || len(s) > limit {
		return fmt.Errorf("%s %.80q has %d characters; 1 to %d are allowed", what, s, len(s), limit)
	}
	for i, c := range s {
		ok := c >= 'a' && c <= 'z' || i > 0 && (c >= '0' && c <= '9' || strings.ContainsRune(extra, c))
		if !ok {
			return fmt.Errorf("%s %.80q must begin with a-z and hold only a-z, 0-9 and %s", what, s, extra)
		}
	}
	return nil
}
