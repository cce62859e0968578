#!/usr/bin/env bash
# build.sh node|controller BINARIES OUT.tar: an image as an archive (for `ctr images import`, `docker load`), made
# without a container engine by the step that the Dockerfile of the same name runs.
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
version=$(sed -n '/^\[workspace.package\]/,/^$/s/^version = "\(.*\)"/\1/p' "$here/../../Cargo.toml")
what=$1 binaries=$2 out=$3
case $what in
    node) name=bowline entrypoint='["/usr/bin/bowline"]' ;;
    controller) name=bowline-controller entrypoint='["/usr/bin/bowline-controller"]' ;;
    *) echo "build.sh: '$what' is neither node nor controller" >&2; exit 2 ;;
esac
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
"$here/rootfs.sh" "$what" "$binaries" "$root/rootfs"
python3 "$here/../e2e/image.py" "$out.new" "localhost/$name:$version" "$entrypoint" '[]' "tree:$root/rootfs=/"
mv "$out.new" "$out"
