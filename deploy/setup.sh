#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# Installs what building, running and testing Petri need, on Debian and its
# derivatives. It may be run any number of times, and says what it does and why.
set -eu

cd "$(dirname "$0")/.."

packages="
qemu-system-x86:the virtual machines
xz-utils:to unpack the guests' kernel
ca-certificates:for package downloads over https
gcc:tester programs for the guests, and the race detector
libc6-dev:the same
musl-tools:the same, with the other C library
clang-14:to regenerate the tracer's BPF objects
llvm-14:the same
git:to see whether generated files differ
make:the commands themselves
nodejs:an independent NATS client in the tests
npm:the same
redis-server:the benchmarks, to be compared with
zstd:the same
python3:an analyzer in Python, in the tests
"

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

for dir in bus/testdata/js analyzers/examples/javascript; do
	echo "setup: npm packages of the NATS clients that are not ours ($dir)"
	(cd "$dir" && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error)
done
