// SPDX-License-Identifier: Apache-2.0

package main

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

// TestTellSilence tells soon that the server is silent, now and then that it still
// is, and when it answers; a moment's silence is nobody's business.
func TestTellSilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begin := time.Now()
		var told []string
		f := &flaky{}
		stop := telling(t.Context(), f, func(text string) {
			what, _, _ := strings.Cut(text, ":")
			told = append(told, time.Since(begin).Truncate(time.Second).String()+" "+what)
		})
		time.Sleep(100 * time.Millisecond) // nothing happens just when it looks
		for range 2 {
			f.lost.Store(time.Now().UnixNano())
			time.Sleep(time.Second)
			f.lost.Store(0)
			time.Sleep(9 * time.Second)
		}
		f.lost.Store(time.Now().UnixNano()) // at 20 s
		time.Sleep(35 * time.Second)
		f.lost.Store(0)
		time.Sleep(5 * time.Second)
		stop()
		want := []string{
			"22s no answer from the server for 2s", "52s no answer from the server for 32s",
			"55s the server answers again, after 35s",
		}
		if diff := cmp.Diff(want, told); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	})
}
