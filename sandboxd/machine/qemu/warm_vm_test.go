//go:build vm

package qemu_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/petri-sandbox/petri/sandboxd/machine"
	"github.com/petri-sandbox/petri/sandboxd/machine/qemu"
	"github.com/petri-sandbox/petri/schemas"
)

func TestWarm(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	dir := t.TempDir()
	ram, _ := os.Create(filepath.Join(dir, "ram"))
	state, _ := os.Create(filepath.Join(dir, "state"))
	rec := newRecorder()
	begin := time.Now()
	hello, err := qemu.Snapshot(ctx, config(t), rec, ram, state)
	fmt.Println(hello, err, time.Since(begin))
	if err != nil {
		t.Fatal(rec.data[schemas.SourceSerial])
	}
	cfg := config(t)
	cfg.Template = &qemu.Template{RAM: ram, State: func() (*os.File, error) { return os.Open(filepath.Join(dir, "state")) }, Hello: hello}
	for range 6 {
		rec := newRecorder()
		m := qemu.New(cfg, rec)
		begin := time.Now()
		boot, err := m.Poweron(ctx, id)
		fmt.Println(time.Since(begin), boot.Took, boot.Fallback, boot.Machine.Start, err)
		begin = time.Now()
		f, _ := os.Open("/bin/ls")
		fi, _ := f.Stat()
		_, err = m.Run(ctx, machine.Run{RunSample: schemas.RunSample{Path: "/root/ls", Command: []string{"/root/ls", "-la", "/"}, Dir: "/root"}, Size: fi.Size(), Needed: []string{"libselinux.so.1"}, Limits: machine.Limits{Stdout: 1 << 20, Tasks: 500}}, f)
		fmt.Println("run", time.Since(begin), err)
		for n := 0; n < 1; {
			select {
			case e := <-rec.events:
				if e.Tree != nil {
					n++
				}
			case <-ctx.Done():
				t.Fatal("timeout")
			}
		}
		fmt.Println("exited", time.Since(begin))
		begin = time.Now()
		fmt.Println(m.Shutdown(ctx), time.Since(begin))
	}
}
