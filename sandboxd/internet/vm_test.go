// SPDX-License-Identifier: Apache-2.0

//go:build vm

package internet_test

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/petri-sandbox/petri/sandboxd/internet"
)

// TestQEMU puts a real QEMU on the switch, whose network card's own boot ROM
// (iPXE) takes a lease: a DHCP client that is not ours, over QEMU's framing.
func TestQEMU(t *testing.T) {
	r := &recorder{}
	leased := make(chan internet.Lease, 1)
	n, err := internet.New(internet.Options{Frame: r.frame, Lease: func(l internet.Lease) { leased <- l }})
	if err != nil {
		t.Fatal(err)
	}
	ours, qemus := socketpair(t)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "qemu-system-x86_64", "-M", "pc", "-accel", "tcg", "-m", "256", "-nodefaults", "-no-user-config",
		"-display", "none", "-netdev", "stream,id=n0,server=off,addr.type=fd,addr.str=3",
		"-device", "virtio-net-pci,netdev=n0,mac="+guestMAC.String(), "-boot", "n")
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.ExtraFiles = []*os.File{qemus}
	start := time.Now()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	qemus.Close()
	done := make(chan error, 1)
	go func() { done <- n.Run(ctx, ours) }()
	select {
	case l := <-leased:
		t.Logf("%s took %s after %s, %+v", l.MAC, l.Address, time.Since(start), n.Stats())
		if l.MAC != guestMAC {
			t.Errorf("lease of %s", l.MAC)
		}
	case <-ctx.Done():
		t.Errorf("no lease, stats %+v", n.Stats())
	case err := <-done:
		t.Fatalf("run: %v", err)
	}
	cmd.Process.Kill()
	cmd.Wait()
	if err := <-done; err != nil {
		t.Errorf("run after QEMU's end: %v", err)
	}
	if out.Len() > 0 {
		t.Logf("QEMU: %s", out.Bytes())
	}
	for _, reply := range r.replies() {
		t.Log(describe(t, reply))
	}
}
