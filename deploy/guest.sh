#!/bin/bash
# Runs a command in an emulated machine with Debian's own kernel, over a copy-on-write view of this root file system;
# without KVM, so expect minutes. The command ends with the line "guest: all holds" when it does.
#
#   deploy/guest.sh NAME QEMU-OPTIONS KERNEL-OPTIONS COMMAND      log in target/guest/NAME.log
set -eu
name=$1 qemu=$2 kernel_options=$3 command=$4
out=$(cd "$(dirname "$0")/.." && pwd)/target/guest
mkdir -p "$out"

kernel=$(ls -1v /boot/vmlinuz-* 2>/dev/null | tail -1)
[ -n "$kernel" ] || { echo "guest: no kernel in /boot: run 'apt-get install linux-image-amd64'" >&2; exit 1; }
if ! [ -x "$out/venv/bin/vng" ]; then
    python3 -m venv "$out/venv"
    "$out/venv/bin/pip" install --quiet virtme-ng==1.42
fi

# vng calls its parts by name.
export PATH=$out/venv/bin:$PATH
log=$out/$name.log
echo "guest: booting $kernel; log in $log"
timeout 2400 vng --run "$kernel" --disable-kvm --disable-microvm --force-9p \
    --cpus 2 --memory 2G --user root --append "$kernel_options" --qemu-opts="$qemu" \
    -- "$command" >"$log" 2>&1 </dev/null || true
grep -a '^guest: ' "$log" || true
if ! grep -aq '^guest: all holds' "$log"; then
    tail -60 "$log" >&2
    exit 1
fi
