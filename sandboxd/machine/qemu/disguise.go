// SPDX-License-Identifier: Apache-2.0

package qemu

import "github.com/petri-sandbox/petri/sandboxd/catalogue"

// disguise are the options that put the names of an ordinary machine in the place
// of QEMU's: in the firmware's tables, and in the emulated CPU's identification,
// which has the vendor AMD. Other guests than the PC's have no such tables. With KVM the CPU is the host's, and the guest's clock
// is KVM's, so that one goes on saying what it is. docs/threat-model.md lists what
// gives a guest away all the same.
func disguise(cpu catalogue.CPU, accel string) []string {
	if cpu.Name != catalogue.Default {
		return nil
	}
	args := []string{
		"-machine", "x-oem-id=ALASKA,x-oem-table-id=AMI",
		"-smbios", "type=0,vendor=American Megatrends Inc.,version=F50,date=11/27/2019",
		"-smbios", "type=1,manufacturer=Gigabyte Technology Co.,,Ltd.,product=B450M DS3H,version=Default string,serial=Default string,family=Default string",
		"-smbios", "type=2,manufacturer=Gigabyte Technology Co.,,Ltd.,product=B450M DS3H-CF,version=x.x,serial=Default string",
		"-smbios", "type=3,manufacturer=Default string,version=Default string,serial=Default string",
		"-smbios", "type=4,manufacturer=Advanced Micro Devices,,Inc.,version=AMD Ryzen 5 2600 Six-Core Processor",
		"-smbios", "type=17,manufacturer=Kingston",
	}
	if accel == "tcg" {
		for _, property := range []string{"model-id=AMD Ryzen 5 2600 Six-Core Processor", "hypervisor=off", "tcg-cpuid=off"} {
			args = append(args, "-global", "max-x86_64-cpu."+property)
		}
	}
	return args
}
