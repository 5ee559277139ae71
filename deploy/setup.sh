#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# Installs what building, running and testing Petri need, on Debian and its
# derivatives. It may be run any number of times, and says what it does and why.
#
#   setup.sh           what make test needs
#   setup.sh demo      what make demo needs
#   setup.sh guests    what make test-guests needs besides
set -eu

cd "$(dirname "$0")/.."

demo="
qemu-system-x86:the virtual machines
xz-utils:to unpack the guests' kernel
ca-certificates:for package downloads over https
gcc:tester programs for the guests, and the race detector
libc6-dev:the same
make:the commands themselves
"
test="
musl-tools:tester programs with the other C library
qemu-system-misc:virtual machines of another byte order (s390x)
gcc-i686-linux-gnu:tester programs for the i386 guest
libc6-dev-i386-cross:the same
gcc-s390x-linux-gnu:tester programs for the s390x guest
libc6-dev-s390x-cross:the same
clang-14:to regenerate the tracer's BPF objects
llvm-14:the same
git:to see whether generated files differ
nodejs:an independent NATS client in the tests
npm:the same
redis-server:the benchmarks, to be compared with
zstd:the same
python3:an analyzer in Python, in the tests
"
guests="
qemu-system-arm:virtual machines of arm64 and armhf
qemu-system-mips:of mips, mipsel and mips64el
qemu-system-ppc:of ppc64 and ppc64el
gcc-aarch64-linux-gnu:tester programs for the arm64 guest
libc6-dev-arm64-cross:the same
gcc-arm-linux-gnueabihf:tester programs for the armhf guest
libc6-dev-armhf-cross:the same
gcc-arm-linux-gnueabi:the same with soft floating point
libc6-dev-armel-cross:the same
gcc-mipsel-linux-gnu:tester programs for the mipsel guest
libc6-dev-mipsel-cross:the same
gcc-mips64el-linux-gnuabi64:tester programs for the mips64el guest
libc6-dev-mips64el-cross:the same
gcc-mips-linux-gnu:the kernel and busybox of the mips guest, and tester programs for it
libc6-dev-mips-cross:the same
gcc-riscv64-linux-gnu:the same of the riscv64 guest
libc6-dev-riscv64-cross:the same
gcc-powerpc64-linux-gnu:the same of the ppc64 guest
libc6-dev-ppc64-cross:the same
gcc-powerpc-linux-gnu:tester programs of 32 bits for it
libc6-dev-powerpc-cross:the same
flex:to compile these kernels
bison:the same
bc:the same
dpkg-dev:to unpack busybox's source
gcc-powerpc64le-linux-gnu:tester programs for the ppc64el guest
libc6-dev-ppc64el-cross:the same
"
case "${1:-test}" in
demo) packages="$demo" ;;
test) packages="$demo$test" ;;
guests) packages="$demo$test$guests" ;;
*)
	echo "setup: unknown part \"$1\" (see the top of $0)" >&2
	exit 2
	;;
esac

missing=""
for line in $(echo "$packages" | cut -d: -f1); do
	case "$line" in
	nodejs) command -v node >/dev/null && continue ;;
	npm) command -v npm >/dev/null && continue ;;
	esac
	dpkg-query -W -f '${Status}' "$line" 2>/dev/null | grep -q 'ok installed' || missing="$missing $line"
done

if [ -n "$missing" ]; then
	as=""
	if [ "$(id -u)" != 0 ]; then
		command -v sudo >/dev/null || {
			echo "setup: you are not root and there is no sudo; as root: apt-get install --no-install-recommends$missing" >&2
			exit 1
		}
		as="sudo"
	fi
	echo "setup: installing with apt-get (${as:-as root}):"
	for p in $missing; do
		echo "  $p: $(echo "$packages" | sed -n "s/^$p://p")"
	done
	$as env DEBIAN_FRONTEND=noninteractive apt-get -q update
	# shellcheck disable=SC2086
	$as env DEBIAN_FRONTEND=noninteractive apt-get -q install -y --no-install-recommends $missing
else
	echo "setup: all Debian packages are there"
fi

command -v go >/dev/null || {
	echo "setup: Go 1.26 or newer is not on the PATH (https://go.dev/dl)" >&2
	exit 1
}

[ "${1:-test}" != demo ] || exit 0
for dir in bus/testdata/js analyzers/examples/javascript; do
	echo "setup: npm packages of the NATS clients that are not ours ($dir)"
	(cd "$dir" && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error)
done
echo "setup: the earlier nats-server that an upgrade is tested with"
(cd bus/faults/testdata/oldserver && go mod download)
