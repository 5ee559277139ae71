// SPDX-License-Identifier: Apache-2.0

// Package flock has processes take turns at a file (flock(2)). Who ends, in
// whatever way, has it no longer.
package flock

import (
	"context"
	"errors"
	"os"
	"syscall"
	"time"
)

// Again is how often one who waits looks.
const Again = 100 * time.Millisecond

// Lock waits until f is the caller's alone, or ctx is done, which is then the
// error. If another one has it waiting is called, once.
func Lock(ctx context.Context, f *os.File, waiting func()) error {
	for told := false; ; told = true {
		err := try(f, syscall.LOCK_EX)
		if !errors.Is(err, syscall.EWOULDBLOCK) {
			return err
		}
		if !told {
			waiting()
		}
		select {
		case <-time.After(Again):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Locked reports whether somebody has the file of that path.
func Locked(path string) bool {
	f, err := os.Open(path)
	if err != nil {
		return false
	}
	defer f.Close()
	return errors.Is(try(f, syscall.LOCK_SH), syscall.EWOULDBLOCK)
}

func try(f *os.File, how int) error {
	if err := syscall.Flock(int(f.Fd()), how|syscall.LOCK_NB); err != nil {
		return &os.PathError{Op: "lock", Path: f.Name(), Err: err}
	}
	return nil
}
