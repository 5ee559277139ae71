// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"testing"
	"testing/synctest"
	"time"
)

// TestAgain takes a signal that comes with the first for the same.
func TestAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ch := make(chan os.Signal, 2)
		go func() {
			ch <- os.Interrupt
			time.Sleep(100 * time.Millisecond)
			ch <- os.Interrupt
			time.Sleep(time.Second)
			ch <- os.Interrupt
		}()
		begin := time.Now()
		again(ch)
		if took := time.Since(begin); took != 1100*time.Millisecond {
			t.Errorf("the second came after %s", took)
		}
	})
}
