// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"os"
	"sync"
	"time"
)

const (
	tellAfter = 2 * time.Second  // of silence, that is said
	tellAgain = 30 * time.Second // that there is silence still
)

// silent is a bus as it shows whether its server answers.
type silent interface{ Silent() time.Duration }

// tellSilence says that the server is silent, and that it answers again, until ctx
// is done. Whoever asks goes on asking meanwhile.
func tellSilence(ctx context.Context, b silent, say func(text string)) {
	t := time.NewTicker(tellAfter / 4)
	defer t.Stop()
	var since, told time.Time
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		now := time.Now()
		switch quiet := b.Silent(); {
		case quiet == 0 && !told.IsZero():
			say(fmt.Sprintf("the server answers again, after %s", now.Sub(since).Round(time.Second)))
			told = time.Time{}
		case quiet >= tellAfter && now.Sub(told) >= tellAgain:
			since, told = now.Add(-quiet), now
			say(fmt.Sprintf("no answer from the server for %s: it is asked again, and the others of its cluster if it has one", quiet.Round(time.Second)))
		}
	}
}

// sayHere is for commands that have no other way to tell a person something.
func sayHere(text string) { fmt.Fprintln(os.Stderr, "petri:", text) }

// telling tells of the server's silence until the returned function is called.
func telling(ctx context.Context, b silent, say func(text string)) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() { tellSilence(ctx, b, say) })
	return func() {
		cancel()
		wg.Wait()
	}
}

// reaching tells that a connection is not there yet, as telling does of one that
// was.
type reaching time.Time

func (r reaching) Silent() time.Duration { return time.Since(time.Time(r)) }
