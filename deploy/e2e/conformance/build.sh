# Read by ../build.sh: Kubernetes' own end-to-end tests (e2e.test), CoreDNS, and the images that the network tests ask
# for, under the names that the tests have built in; nothing is pulled. 4 + 2 min cold.
COREDNS=v1.14.7

build_conformance() {
    step conformance "$HERE/go/go.mod" || return 0
    go_in go test -c -trimpath -tags "$tags" -ldflags "$(linker_flags)" -o "$BIN/e2e.test" k8s.io/kubernetes/test/e2e
    go_in go build -trimpath -tags "$tags" -ldflags '-s -w' -o "$BIN/agnhost" k8s.io/kubernetes/test/images/agnhost
    done_step
}

build_coredns() {
    step "coredns-$COREDNS" || return 0
    GOBIN=$BIN go install -trimpath -ldflags '-s -w' "github.com/coredns/coredns@$COREDNS"
    image coredns "localhost/coredns:1" '["/coredns"]' '[]' "$BIN/coredns=/coredns"
    done_step
}

unpack_test_tools() {
    step test-tools || return 0
    unpack test-tools netcat-openbsd libbsd0 libmd0 bind9-dnsutils bind9-libs bind9-host libuv1 libmaxminddb0 liblmdb0 \
        libjemalloc2 libfstrm0 libprotobuf-c1 iperf
    done_step
}

# with_libraries BINARY[:NAME]…: the programs as /usr/bin/NAME and their shared libraries, for image.py.
with_libraries() {
    local program file
    for program in "$@"; do
        file=$(readlink -f "${program%%:*}")
        case $program in
            *:*) echo "$file=/usr/bin/${program##*:}" ;;
            *) echo "$file=/usr/bin/$(basename "$program")" ;;
        esac
        LD_LIBRARY_PATH=$DEB/usr/lib/x86_64-linux-gnu "$HERE/../images/libraries.sh" "$file"
    done | sort -u
}

test_images() {
    step test-images "$HERE/image.py" "$HERE/go/go.mod" "$HERE/../images/libraries.sh" || return 0
    local names=registry.k8s.io/e2e-test-images porter
    porter=$(go env GOMODCACHE)/k8s.io/kubernetes@$KUBE_VERSION/test/images/agnhost/porter
    local users=(
        'data:root:x:0:0:root:/root:/bin/sh\nuser-defined-in-image:x:1000:1000::/home:/bin/sh\nnobody:x:65534:65534:n:/:/bin/sh\n=/etc/passwd'
        'data:root:x:0:\nuser-defined-in-image:x:1000:\ngroup-defined-in-image:x:50000:user-defined-in-image\n=/etc/group')
    # shellcheck disable=SC2046
    image agnhost $names/agnhost:2.59,$names/agnhost:2.55,$names/jessie-dnsutils:1.7 '["/agnhost"]' '["pause"]' \
        "$BIN/agnhost=/agnhost" link:agnhost=/agnhost-2 "$porter/localhost.crt=/localhost.crt" \
        "$porter/localhost.key=/localhost.key" dir:=uploads dir:=tmp dir:=root 'data:hosts: files dns\n=/etc/nsswitch.conf' \
        "${users[@]}" "$DEB/bin/busybox=/bin/busybox" \
        $(with_libraries "$(which bash)" "$(which getent)" "$(which curl)" "$(which ip)" "$(which ss)" \
            "$DEB/bin/nc.openbsd:nc" "$DEB/usr/bin/dig" "$DEB/usr/bin/nslookup" "$DEB/usr/bin/host" "$DEB/usr/bin/iperf") \
        link:/usr/bin/bash=/bin/sh link:/usr/bin/bash=/bin/bash $(applets sh ash bash nc ip nslookup)
    # shellcheck disable=SC2046
    image e2e-busybox $names/busybox:1.37.0-1,$names/busybox:1.36.1-1 '[]' '["sh"]' "$DEB/bin/busybox=/bin/busybox" \
        dir:=tmp dir:=root "${users[@]}" $(applets)
    # shellcheck disable=SC2046
    image e2e-nginx $names/nginx:1.14-4,$names/nginx:1.15-4 '["httpd"]' '["-f","-p","80","-h","/www"]' \
        "$DEB/bin/busybox=/bin/busybox" 'data:ok\n=/www/index.html' $(applets)
    done_step
}

build_conformance
build_coredns
unpack_test_tools
test_images
