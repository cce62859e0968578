#!/usr/bin/env bash
# build.sh [apionly|cluster|conformance]: what the end-to-end tests run, from Go modules and Debian packages, into
# $BOWLINE_KUBE_CACHE (default ~/.cache/bowline-kube). Nothing is installed on the machine.
#
#   apionly      etcd, API server …, kubectl in one binary: 6.5 min cold on 2 cores, 142 MB
#   cluster      and helm, Multus, a memif client, containerd, runc, reference CNI plugins, base images (the default)
#   conformance  and Kubernetes' own tests with their images, CoreDNS: 6 min more
#
# A stamp for each step holds a digest of its files and its commands: warm runs take a second.
set -euo pipefail
. "$(dirname "$(readlink -f "$0")")/env.sh"
what=${1:-cluster}
mkdir -p "$BIN" "$DEB" "$IMG" "$CACHE/deb" "$CACHE/stamp"
exec 9> "$CACHE/build.lock"
flock 9                                            # two makes at once would build the same thing twice
export CGO_ENABLED=0
tags="selinux notest grpcnotrace"

# step NAME FILE…: whether step NAME has to run, because it never ended or a FILE changed since.
step() {
    # Contents, not names: two checkouts share the cache.
    digest=$({ declare -f "${FUNCNAME[1]}"; echo "$KUBE_VERSION"; cat /dev/null "${@:2}"; } | sha256sum)
    stamp=$CACHE/stamp/$1
    [ "$(cat "$stamp" 2>/dev/null)" != "$digest" ] || return 1
    echo "bowline: building $1 into $CACHE"
}
# Steps write beside the target and rename, so that a killed build leaves no half of a program.
done_step() { echo "$digest" > "$stamp"; }

linker_flags() {
    local flags="-s -w" pair package
    for pair in gitVersion=$KUBE_VERSION gitMajor=1 gitMinor=35 gitTreeState=clean \
        buildDate=2026-04-15T00:00:00Z gitCommit=0000000000000000000000000000000000000000; do
        for package in k8s.io/component-base/version k8s.io/client-go/pkg/version; do
            flags="$flags -X $package.$pair"
        done
    done
    echo "$flags"
}

go_in() { ( cd "$HERE/$1" && go "${@:2}" ); }

build_kube() {
    step kube "$HERE"/go/go.mod "$HERE"/go/kube/main.go || return 0
    go_in go build -trimpath -tags "$tags" -ldflags "$(linker_flags)" -o "$BIN/kube.new" ./kube
    mv "$BIN/kube.new" "$BIN/kube"
    for name in etcd kube-apiserver kube-controller-manager kube-scheduler kubelet kube-proxy kubectl; do
        ln -sfn kube "$BIN/$name"
    done
    done_step
}

build_tools() {
    step tools "$HERE/go/go.mod" || return 0
    go_in go build -trimpath -tags "$tags" -ldflags '-s -w' -o "$BIN/" tool
    done_step
}

# Multus is written against an older Kubernetes and does not compile with the others' modules.
build_multus() {
    step multus "$HERE/multus/go.mod" || return 0
    go_in multus build -trimpath -ldflags '-s -w' -o "$BIN/" tool
    done_step
}

# unpack FOLDER PACKAGE…: Debian packages into $DEB.
unpack() {
    local folder=$CACHE/deb/$1 package
    rm -rf "$folder"; mkdir -p "$folder"
    # apt's own user cannot write below a home folder; root downloads well.
    ( cd "$folder" && apt-get -o APT::Sandbox::User=root download -qq "${@:2}" )
    for package in "$folder"/*.deb; do dpkg -x "$package" "$DEB"; done
    rm -rf "$folder"
}

unpack_node() {
    step node || return 0
    unpack node containerd runc containernetworking-plugins busybox-static nftables libnftables1 libedit2 libjansson4 \
        libnftnl11 libmnl0 iptables libxtables12 libip4tc2 libip6tc2 libnetfilter-conntrack3 libnfnetlink0 conntrack
    local name
    for name in iptables iptables-save iptables-restore ip6tables ip6tables-save ip6tables-restore; do
        ln -sfn xtables-nft-multi "$DEB/usr/sbin/$name"
    done
    done_step
}

# All of busybox's applets but the named ones, as links for image.py.
applets() {
    local applet
    for applet in $("$DEB/bin/busybox" --list); do
        case " busybox $* " in *" $applet "*) ;; *) echo "link:/bin/busybox=/bin/$applet" ;; esac
    done
}

image() { python3 "$HERE/image.py" "$IMG/.new" "${@:2}" && mv "$IMG/.new" "$IMG/$1.tar"; }

base_images() {
    step base-images "$HERE/image.py" "$HERE/pause.c" || return 0
    gcc -Os -static -o "$CACHE/pause" "$HERE/pause.c"
    image pause localhost/pause:1,registry.k8s.io/pause:3.10,registry.k8s.io/pause:3.10.1 '["/pause"]' '[]' "$CACHE/pause=/pause"
    # shellcheck disable=SC2046
    image busybox localhost/busybox:1 '[]' '["sh"]' "$DEB/bin/busybox=/bin/busybox" dir:=tmp dir:=root \
        'data:root:x:0:0:root:/root:/bin/sh\n=/etc/passwd' 'data:root:x:0:\n=/etc/group' $(applets)
    image gomemif localhost/gomemif:1 '["/gomemif"]' '[]' "$BIN/icmp_responder_cb=/gomemif" \
        "$DEB/bin/busybox=/bin/busybox" link:/bin/busybox=/bin/sh
    # What manifests/documents ask for by this name: something that answers at port 80, and ends when it is told.
    # shellcheck disable=SC2046
    image nginx docker.io/library/nginx:latest '["sh","-c","trap exit TERM; httpd -f -p 80 -h /www & wait"]' '[]' \
        "$DEB/bin/busybox=/bin/busybox" 'data:ok\n=/www/index.html' 'data:root:x:0:0:root:/root:/bin/sh\n=/etc/passwd' \
        'data:root:x:0:\n=/etc/group' dir:=root $(applets)
    done_step
}

build_kube
[ "$what" != apionly ] || exit 0
build_tools
build_multus
unpack_node
base_images
[ "$what" != cluster ] || exit 0
. "$HERE/conformance/build.sh"
