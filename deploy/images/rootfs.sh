#!/usr/bin/env bash
# rootfs.sh node|controller BINARIES ROOT: fills the folder ROOT with an image's files. The Dockerfiles run it in their
# build stage, and build.sh where no container engine is.
#
#   node        data plane, agent, CNI plugin, command-line tool, DPDK's drivers, nft
#   controller  the controller, and the shared libraries that it needs
set -euo pipefail
what=$1 binaries=$2 root=$3
here=$(dirname "$(readlink -f "$0")")
libraries=/usr/lib/x86_64-linux-gnu
# DPDK's drivers that the documentation names; the others would bring 30 MB and their vendors' libraries.
drivers="bus_pci bus_vdev mempool_ring net_af_packet net_af_xdp net_memif net_virtio net_vhost net_null net_e1000 net_i40e
    net_iavf net_ice net_ixgbe net_ena net_mlx5 common_mlx5 common_iavf dma_skeleton dma_idxd"

# put FILE PATH: a file and the libraries that it needs.
put() {
    install -D -m 755 "$1" "$root$2"
    local real path
    "$here/libraries.sh" "$1" | while IFS== read -r real path; do
        [ -e "$root$real" ] || install -D -m 755 "$real" "$root$real"
        # One file, however many names: a driver that is loaded twice registers itself twice.
        [ -e "$root$path" ] || { mkdir -p "$root${path%/*}"; ln -s "$real" "$root$path"; }
    done
}

program() {
    put "$binaries/$1" "/usr/bin/$1"
    strip "$root/usr/bin/$1"
}

put_drivers() {
    local folder driver file
    folder=$(echo "$libraries"/dpdk/pmds-*)
    for driver in $drivers; do
        for file in "$folder/librte_$driver".so.*.*; do put "$(readlink -f "$file")" "$file"; done
    done
}

rm -rf "$root"
mkdir -p "$root"/{etc,run,tmp,usr/bin,usr/lib,var/lib,proc,sys,dev}
chmod 1777 "$root/tmp"
ln -s usr/lib "$root/lib"           # as Debian has it: libraries are looked for under both names
ln -s /run "$root/var/run"          # containerd names pods' namespaces by /var/run/netns
printf 'root:x:0:0:root:/:/usr/bin/bowline\nbowline:x:65532:65532:bowline:/:/usr/bin/bowline\n' > "$root/etc/passwd"
printf 'root:x:0:\nbowline:x:65532:\n' > "$root/etc/group"
case $what in
    node)
        for name in bowline-dataplane bowline-agent bowline-cni bowline; do program "$name"; done
        put_drivers
        put "$(PATH=$PATH:/usr/sbin command -v nft)" /usr/sbin/nft ;;
    controller) program bowline-controller ;;
    *) echo "rootfs.sh: '$what' is neither node nor controller" >&2; exit 2 ;;
esac
