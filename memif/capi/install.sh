#!/bin/sh
# Installs libmemif.so, libmemif.h and libmemif.pc: install.sh [PREFIX]. DESTDIR is honoured, and
# LIBRARY names the library where it is not in the workspace's target/release.
set -eu
prefix=${1:-/usr/local}
here=$(cd "$(dirname "$0")" && pwd)
library=${LIBRARY:-$here/../../target/release/libmemif.so}
root=${DESTDIR:-}$prefix

if [ ! -f "$library" ]; then
	echo "$library is missing: run 'cargo build --release -p memif-capi' first" >&2
	exit 1
fi
install -D -m 755 "$library" "$root/lib/libmemif.so"
install -D -m 644 "$here/../include/libmemif.h" "$root/include/libmemif.h"
mkdir -p "$root/lib/pkgconfig"
sed "s|@prefix@|$prefix|" "$here/libmemif.pc.in" >"$root/lib/pkgconfig/libmemif.pc"
