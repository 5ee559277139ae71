// SPDX-License-Identifier: Apache-2.0

package app

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/pflag"
)

// values are what flags of the standard types take.
var values = map[string]string{
	"bool":     "neither true nor false",
	"int":      "no whole number",
	"int64":    "no whole number",
	"uint64":   "no whole number from 0 on",
	"float64":  "no number",
	"duration": "no duration such as 30s, 5m or 1h30m",
}

// FlagError says what a flag would take, where the error of reading it speaks of
// the program's insides.
func FlagError(err error) error {
	var value *pflag.InvalidValueError
	if !errors.As(err, &value) {
		return err
	}
	flag, cause := value.GetFlag(), value.Unwrap()
	var number *strconv.NumError
	switch is := values[flag.Value.Type()]; {
	case errors.Is(cause, strconv.ErrRange):
		cause = fmt.Errorf("%.40q is too large", value.GetValue())
	case is != "" && (errors.As(cause, &number) || strings.HasPrefix(cause.Error(), "time: ")):
		cause = fmt.Errorf("%.40q is %s", value.GetValue(), is)
	}
	return fmt.Errorf("--%s: %w", flag.Name, cause)
}

// CheckMachines reports what is wrong with flags that say how many machines there
// may be, and what they are like.
func CheckMachines(accel string, parallel int, memoryMB int64) error {
	switch accel {
	case "auto", "kvm", "tcg":
	default:
		return fmt.Errorf("--accel %q is none of auto, kvm, tcg", accel)
	}
	if memoryMB < 128 || memoryMB > 64<<10 {
		return fmt.Errorf("--memory %d: a guest has between 128 and 65536 MiB", memoryMB)
	}
	if parallel < 1 || parallel > 1000 {
		return fmt.Errorf("--parallel %d is not between 1 and 1000", parallel)
	}
	return nil
}
