// SPDX-License-Identifier: Apache-2.0

package image

import (
	"fmt"
	"os"
	"path"
	"strings"
)

// Where things lie in the initramfs. guestd (cmd/guestd) knows the same
// names; the sample sees only what is below Rom, as its root.
const (
	Rom     = "/rom"     // the sample's root file system, read-only
	Modules = "/modules" // NN-name.ko in loading order
)

// unwanted are files of root packages that a running sample has no use for.
var unwanted = []string{
	"/usr/share/doc", "/usr/share/man", "/usr/share/lintian", "/usr/share/locale",
	"/usr/share/bug", "/usr/share/info", "/usr/share/initramfs-tools", "/usr/share/doc-base",
}

// keepRoot says which files of the root packages the guest gets.
func keepRoot(p string) bool {
	if p == "/" || strings.Contains(p, "/gconv/") {
		return false
	}
	for _, u := range unwanted {
		if under(p, u) {
			return false
		}
	}
	return true
}

// linkDirs are the top-level directories that Debian has merged into /usr.
var linkDirs = []string{"bin", "sbin", "lib", "lib64"}

// rootEntries turns the packages' files into the sample's root: the merged
// /usr of every Debian since 12, busybox's commands, and the few files of
// /etc that base-files' scripts would have written.
func rootEntries(files []entry) ([]entry, error) {
	var out []entry
	for _, d := range linkDirs {
		out = append(out,
			entry{path: "/usr/" + d, mode: os.ModeDir | 0o755},
			entry{path: "/" + d, mode: os.ModeSymlink, link: "usr/" + d})
	}
	have := map[string]bool{}
	var busybox []byte
	for _, e := range files {
		for _, d := range linkDirs {
			if e.path == "/"+d {
				e.path = "" // the link above takes its place
			} else if strings.HasPrefix(e.path, "/"+d+"/") {
				e.path = "/usr" + e.path
			}
		}
		if e.path == "" {
			continue
		}
		if e.path == "/usr/bin/busybox" {
			busybox = e.data
		}
		have[e.path] = true
		out = append(out, e)
	}
	if busybox == nil {
		return nil, fmt.Errorf("busybox-static holds no /bin/busybox")
	}
	applets, err := busyboxApplets(busybox)
	if err != nil {
		return nil, err
	}
	for _, a := range applets {
		dir := "/usr/bin/"
		if sbinApplets[a] {
			dir = "/usr/sbin/"
		}
		if have[dir+a] || a == "busybox" || strings.Contains(a, "/") {
			continue
		}
		target := "busybox"
		if dir == "/usr/sbin/" {
			target = "../bin/busybox"
		}
		out = append(out, entry{path: dir + a, mode: os.ModeSymlink, link: target})
	}
	for name, text := range etcFiles {
		out = append(out, entry{path: "/etc/" + name, mode: 0o644, data: []byte(text)})
	}
	for _, d := range []string{"dev", "proc", "sys", "run", "root", "tmp", "mnt", "home", "var/tmp", "var/log", "etc"} {
		mode := os.ModeDir | 0o755
		switch d {
		case "root":
			mode = os.ModeDir | 0o700
		case "tmp", "var/tmp":
			mode = os.ModeDir | os.ModeSticky | 0o777
		}
		out = append(out, entry{path: "/" + d, mode: mode})
	}
	for name, dev := range devices {
		out = append(out, entry{path: "/dev/" + name, mode: os.ModeDevice | os.ModeCharDevice | 0o666, dev: dev})
	}
	out = append(out,
		entry{path: "/dev/pts", mode: os.ModeDir | 0o755},
		entry{path: "/dev/shm", mode: os.ModeDir | os.ModeSticky | 0o777},
		entry{path: "/dev/ptmx", mode: os.ModeSymlink, link: "pts/ptmx"},
		entry{path: "/dev/fd", mode: os.ModeSymlink, link: "/proc/self/fd"},
		entry{path: "/dev/stdin", mode: os.ModeSymlink, link: "/proc/self/fd/0"},
		entry{path: "/dev/stdout", mode: os.ModeSymlink, link: "/proc/self/fd/1"},
		entry{path: "/dev/stderr", mode: os.ModeSymlink, link: "/proc/self/fd/2"})
	for i := range out {
		out[i].path = path.Join(Rom, out[i].path)
	}
	return out, nil
}

// crossEntries puts a cross compiler's libraries where a Debian of that CPU has
// them, and the loader where programs name it.
func crossEntries(gnu string, files []entry) []entry {
	from := "/usr/" + gnu + "/"
	var out []entry
	for _, e := range files {
		below, cross := strings.CutPrefix(e.path, from)
		dir, name := path.Split(below)
		switch {
		case !cross && !under(e.path, "/usr/share/gdb"): // it names them
			out = append(out, e)
		case dir == "lib/" && name != "":
			e.path = "/usr/lib/" + gnu + "/" + name
			out = append(out, e)
			if strings.HasPrefix(name, "ld") && strings.Contains(name, ".so.") {
				out = append(out, entry{path: "/usr/lib/" + name, mode: os.ModeSymlink, link: gnu + "/" + name})
			}
		case dir == "lib64/" && name != "":
			out = append(out, entry{path: "/usr/lib64/" + name, mode: os.ModeSymlink, link: "../lib/" + gnu + "/" + name})
		}
	}
	return out
}

// devices are the device nodes that the sample finds: no memory, no disks, and
// not the agent's port. Numbers: Documentation/admin-guide/devices.txt.
var devices = map[string][2]int{
	"null": {1, 3}, "zero": {1, 5}, "full": {1, 7}, "random": {1, 8}, "urandom": {1, 9}, "tty": {5, 0},
}

var sbinApplets = map[string]bool{
	"init": true, "halt": true, "poweroff": true, "reboot": true, "ifconfig": true, "route": true,
	"insmod": true, "rmmod": true, "lsmod": true, "modprobe": true, "mdev": true, "fdisk": true,
	"mkswap": true, "swapon": true, "swapoff": true, "sysctl": true, "syslogd": true, "klogd": true,
	"udhcpc": true, "ip": true, "losetup": true, "pivot_root": true, "switch_root": true,
	"getty": true, "login": false, "blkid": true, "hwclock": true, "arp": true, "iptunnel": true,
}

// etcFiles are what maintainer scripts and the installer would have written.
// hostname, hosts and machine-id are written anew for each analysis.
var etcFiles = map[string]string{
	"passwd": `root:x:0:0:root:/root:/bin/sh
daemon:x:1:1:daemon:/usr/sbin:/usr/sbin/nologin
bin:x:2:2:bin:/bin:/usr/sbin/nologin
sys:x:3:3:sys:/dev:/usr/sbin/nologin
mail:x:8:8:mail:/var/mail:/usr/sbin/nologin
www-data:x:33:33:www-data:/var/www:/usr/sbin/nologin
nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin
user:x:1000:1000:user:/home/user:/bin/sh
`,
	"group": `root:x:0:
daemon:x:1:
bin:x:2:
sys:x:3:
adm:x:4:
tty:x:5:
disk:x:6:
mail:x:8:
sudo:x:27:
www-data:x:33:
nogroup:x:65534:
user:x:1000:
`,
	"shadow":        "root:*:19700:0:99999:7:::\nuser:*:19700:0:99999:7:::\n",
	"nsswitch.conf": "passwd: files\ngroup: files\nshadow: files\nhosts: files dns\nnetworks: files\nprotocols: files\nservices: files\n",
	"shells":        "/bin/sh\n/usr/bin/sh\n/bin/bash\n/usr/bin/bash\n",
	"fstab":         "",
	"inittab":       "::ctrlaltdel:/sbin/reboot\n",
	"resolv.conf":   "nameserver 10.0.2.3\n",
	"profile":       "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\nexport PATH\n",
}
