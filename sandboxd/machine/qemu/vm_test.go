// SPDX-License-Identifier: Apache-2.0

//go:build vm

package qemu_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/petri-sandbox/petri/sandboxd/image"
	"github.com/petri-sandbox/petri/sandboxd/machine"
	"github.com/petri-sandbox/petri/sandboxd/machine/qemu"
	"github.com/petri-sandbox/petri/schemas"
)

type recorder struct {
	mu     sync.Mutex
	data   map[schemas.Source]string
	events chan machine.Event
	files  []schemas.DroppedFile
}

func newRecorder() *recorder {
	return &recorder{data: map[schemas.Source]string{}, events: make(chan machine.Event, 1000)}
}
func (r *recorder) Event(e machine.Event) { r.events <- e }
func (r *recorder) Data(s schemas.Source, p []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.data[s] += string(p)
}
func (r *recorder) End(schemas.Source, schemas.SourceCoverage) {}
func (r *recorder) File(f schemas.DroppedFile) machine.FileWriter {
	r.files = append(r.files, f)
	return nopFile{}
}

type nopFile struct{}

func (nopFile) Write(p []byte) (int, error) { return len(p), nil }
func (nopFile) Close(int64, error)          {}

func config(t *testing.T) qemu.Config {
	b := image.Builder{Cache: "/var/cache/petri", Guestd: "../../../bin", Log: t.Logf}
	img, err := b.Open(t.Context(), "amd64")
	if err != nil {
		t.Fatal(err)
	}
	k, err := os.Open(img.KernelPath())
	if err != nil {
		t.Fatal(err)
	}
	i, err := os.Open(img.InitramfsPath())
	if err != nil {
		t.Fatal(err)
	}
	return qemu.Config{Binary: "qemu-system-x86_64", Accel: "tcg", Arch: "amd64", Memory: 256 << 20, Mark: "petri-test", Kernel: k, Initramfs: i}
}

var id = machine.Identity{Identity: schemas.Identity{Hostname: "host-1", MachineID: "0123456789abcdef0123456789abcdef", MAC: "52:54:00:aa:bb:cc", Uptime: schemas.Duration(80 * time.Hour), FirstPID: 777}, Entropy: []byte(strings.Repeat("x", 64))}

func TestColdBoot(t *testing.T) {
	rec := newRecorder()
	m := qemu.New(config(t), rec)
	defer m.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	boot, err := m.Poweron(ctx, id)
	if err != nil {
		t.Fatalf("%v\nserial: %s", err, rec.data[schemas.SourceSerial])
	}
	t.Logf("%+v", boot)
	f, _ := os.Open("/bin/ls")
	fi, _ := f.Stat()
	begin := time.Now()
	st, err := m.Run(ctx, machine.Run{RunSample: schemas.RunSample{Path: "/root/ls", Command: []string{"/root/ls", "-la", "/"}, Dir: "/root"}, Size: fi.Size(), Needed: []string{"libselinux.so.1"}, Limits: machine.Limits{Stdout: 1 << 20, Tasks: 500}}, f)
	t.Log(st, err, time.Since(begin))
	if err != nil {
		time.Sleep(300 * time.Millisecond)
		rec.mu.Lock()
		t.Fatal(rec.data[schemas.SourceSerial])
	}
	for n := 0; n < 2; {
		select {
		case e := <-rec.events:
			t.Logf("%+v %+v", e, e.Exited)
			if e.Exited != nil || e.Tree != nil {
				n++
			}
		case <-ctx.Done():
			t.Fatal("timeout")
		}
	}
	rec.mu.Lock()
	fmt.Println(rec.data[schemas.SourceStdout], rec.data[schemas.SourceStderr])
	rec.mu.Unlock()
	for _, c := range []string{"ps", "cat /proc/uptime", "cat /proc/mounts", "cat /proc/self/cgroup", "ls -la /proc/1/exe /proc/1/fd", "cat /proc/meminfo", "hostname", "sh -c 'echo $PPID $$; touch /tmp/x; rm /etc/profile'", "cat /proc/sys/kernel/random/boot_id"} {
		argv := strings.Fields(c)
		if strings.HasPrefix(c, "sh -c") {
			argv = []string{"sh", "-c", c[7 : len(c)-1]}
		}
		begin := time.Now()
		res, err := m.Exec(ctx, machine.Exec{Command: argv, Timeout: 5 * time.Second})
		fmt.Println(c, err, time.Since(begin), "\n", res.Stdout, res.Stderr)
	}
	sum, err := m.Collect(ctx, machine.Collect{MaxFile: 1 << 20, MaxFiles: 10, MaxTotal: 1 << 20, MaxList: 100})
	fmt.Printf("%+v %v %+v\n", sum, err, rec.files)
	begin = time.Now()
	d, _ := os.CreateTemp(t.TempDir(), "")
	fmt.Println(m.DumpMemory(ctx, d), time.Since(begin))
	if out, err := exec.Command("readelf", "-lW", d.Name()).CombinedOutput(); err != nil {
		fmt.Println(string(out))
	}
	begin = time.Now()
	fmt.Println(m.Restart(ctx, id))
	fmt.Println(time.Since(begin))
	begin = time.Now()
	fmt.Println(m.Shutdown(ctx), time.Since(begin))
}
