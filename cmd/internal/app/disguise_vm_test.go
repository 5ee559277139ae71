// SPDX-License-Identifier: Apache-2.0

//go:build vm

package app_test

import (
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// hypervisors are names that nothing which a sample reads first may have.
var hypervisors = regexp.MustCompile(`(?i)qemu|bochs|kvm|tcg|virtual|vbox|vmware|xen|seabios|petri|guestd`)

// TestDisguise reads in a guest what evasive samples read first: the board, the
// firmware, the CPU, disks, the network card's address, uptime, processes, users
// and the tracer.
func TestDisguise(t *testing.T) {
	bin := build(t)
	r, _, code := detonate(t, bin, filepath.Join(t.TempDir(), "data"), "--accel", "tcg", program(t, "fingerprint.c"))
	// It asks for BPF programs, as who means to tamper with them does.
	if code != 5 || len(r.Outcome.Reasons) != 1 || !strings.Contains(r.Outcome.Reasons[0], "BPF_PROG_GET_NEXT_ID") {
		t.Fatalf("exit code %d, outcome %+v", code, r.Outcome)
	}
	values := map[string]string{}
	for line := range strings.Lines(r.Console.Stdout) {
		name, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "=")
		values[name] = value
	}
	for _, name := range []string{
		"dmi_sys_vendor", "dmi_product_name", "dmi_product_version", "dmi_product_serial", "dmi_bios_vendor", "dmi_bios_version", "dmi_chassis_vendor",
		"dmi_board_vendor", "acpi_oem", "cpu_model", "cpuid_hypervisor_vendor", "block_devices", "hostname", "etc_passwd", "os_release", "visible_names", "init_comm",
		"mounts", "environ", "kernel_cmdline",
	} {
		value, ok := values[name]
		if !ok {
			t.Errorf("the program prints no %s", name)
		}
		if hypervisors.MatchString(value) {
			t.Errorf("%s is %q", name, value)
		}
	}
	for name, want := range map[string]string{"cpuid_hypervisor": "0", "tracer_pid": "0"} {
		if values[name] != want {
			t.Errorf("%s is %q", name, values[name])
		}
	}
	if !strings.HasPrefix(values["mac_eth0"], "00:e0:4c:") {
		t.Errorf("the network card's address is %q", values["mac_eth0"])
	}
	if up, err := strconv.ParseFloat(strings.Fields(values["uptime"] + " ")[0], 64); err != nil || up < 20*60 {
		t.Errorf("the machine has been up for %q seconds", values["uptime"])
	}
}
