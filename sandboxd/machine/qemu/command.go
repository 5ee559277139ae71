// SPDX-License-Identifier: Apache-2.0

package qemu

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/petri-sandbox/petri/sandboxd/catalogue"
)

// The descriptors that QEMU inherits, in this order from 3 on. It is given no
// path at all: whatever it opens was opened for it.
const (
	fdKernel = 3 + iota
	fdInitramfs
	fdAgent
	fdMonitor
	fdNetwork
	fdSerial
	fdRAM   // with a template, and when one is made
	fdState // with a template
)

// procFD is how QEMU opens an inherited file by name.
func procFD(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }

// defaultMAC is the address that the network device is built with; the guest
// takes on the analysis' own when it is assigned to one.
const defaultMAC = "52:54:00:12:34:56"

// kernelArgs is the guest kernel's command line, behind its console. panic=-1
// turns a panic into a reset at once, which QEMU turns into its own exit.
const kernelArgs = " quiet loglevel=4 panic=-1 mitigations=off"

// ramMode says what backs the guest's RAM.
type ramMode int

const (
	ramAnonymous ramMode = iota // a cold boot
	ramShared                   // a template in the making writes its file
	ramPrivate                  // a warm start reads a template's file, copy on write
)

// command is QEMU's argument list. The device list is one and the same for
// every start of a guest: a snapshot fits no other. What is booted is none of it.
//
// Options: qemu-system(1). Nothing of it depends on the sample.
func (c *Config) command(ram ramMode) []string {
	mem := strconv.FormatInt(c.Memory>>20, 10) + "M"
	var object string
	switch ram {
	case ramAnonymous:
		object = "memory-backend-ram,id=ram0,size=" + mem
	case ramShared:
		object = fmt.Sprintf("memory-backend-file,id=ram0,size=%s,mem-path=%s,share=on", mem, procFD(fdRAM))
	case ramPrivate:
		object = fmt.Sprintf("memory-backend-file,id=ram0,size=%s,mem-path=%s,share=off", mem, procFD(fdRAM))
	}
	accel := c.Accel
	if accel == "tcg" {
		// The translation buffer is by default as large as a quarter of the
		// host's memory allows.
		accel = "tcg,thread=single,tb-size=128"
	}
	cpu, romfile := c.CPU, ""
	if cpu.Bus == "pci" {
		romfile = ",romfile=" // else it is wanted although it is never run
	}
	args := []string{
		"-name", "guest=" + c.Mark + ",process=" + processName,
		"-no-user-config", "-nodefaults", "-display", "none",
		"-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
		"-machine", cpu.Machine + ",memory-backend=ram0",
		"-accel", accel, "-cpu", cpu.Model, "-smp", "1", "-m", mem, "-object", object,
		"-rtc", "base=utc",
		"-action", "reboot=shutdown,shutdown=poweroff,panic=shutdown,watchdog=none",
		"-chardev", "socket,id=monitor,fd=" + strconv.Itoa(fdMonitor), "-mon", "chardev=monitor,mode=control",
		"-chardev", "socket,id=serial,fd=" + strconv.Itoa(fdSerial), "-serial", "chardev:serial",
	}
	for _, d := range cpu.Devices {
		args = append(args, "-device", d)
	}
	args = append(args,
		"-chardev", "socket,id=agent,fd="+strconv.Itoa(fdAgent),
		"-device", "virtio-serial-"+cpu.Bus+",id=serial0,max_ports=2",
		"-device", "virtserialport,bus=serial0.0,nr=1,chardev=agent",
		"-netdev", "stream,id=net0,server=off,addr.type=fd,addr.str="+strconv.Itoa(fdNetwork),
		"-device", "virtio-net-"+cpu.Bus+",netdev=net0,guest_announce=off,mac="+defaultMAC+romfile+cpu.Network,
	)
	args = append(args, disguise(c.CPU, c.Accel)...)
	if ram == ramPrivate {
		// What it would boot is in its RAM, and QEMU would read all of it first.
		return append(args, "-incoming", "defer")
	}
	return append(args, "-kernel", procFD(fdKernel), "-initrd", procFD(fdInitramfs), "-append", "console="+cpu.Console+kernelArgs+c.Append)
}

// TemplateCommand is the command line of a template, without what differs
// between machines: a snapshot fits only what was started with the same.
func TemplateCommand(cpu catalogue.CPU, accel string, memory int64) []string {
	c := Config{CPU: cpu, Accel: accel, Memory: memory, Mark: "template"}
	return c.command(ramShared)
}

// processName is what QEMU calls itself; with the mark before it in the
// command line it tells our machines from anybody else's.
const processName = "petri-machine"

// Marked reports whether the arguments of a process are those of a machine's
// QEMU with a mark that begins so.
func Marked(args []string, mark string) bool {
	if len(args) == 0 || !strings.HasPrefix(filepath.Base(args[0]), "qemu-system-") {
		return false
	}
	i := slices.Index(args, "-name")
	return i > 0 && i+1 < len(args) && strings.HasPrefix(args[i+1], "guest="+mark) && strings.HasSuffix(args[i+1], ",process="+processName)
}

// files are the descriptors to inherit, from 3 on.
func (c *Config) files(ram ramMode, ends [4]*os.File, ramFile, state *os.File) []*os.File {
	out := []*os.File{c.Kernel, c.Initramfs, ends[0], ends[1], ends[2], ends[3]}
	switch ram {
	case ramShared:
		return append(out, ramFile)
	case ramPrivate:
		out[0], out[1] = nil, nil // not inherited
		return append(out, ramFile, state)
	}
	return out
}
