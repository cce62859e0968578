#!/bin/sh
# libraries.sh FILE…: the shared libraries that these programs need, one SOURCE=PATH-IN-THE-IMAGE a line.
#
# The loader stays where the kernel looks for it; everything else goes to Debian's folder.
ldd "$@" 2>/dev/null | grep -oE '/[^ ]+ \(' | tr -d ' (' | sort -u | while read -r library; do
    case $library in
        /lib64/*) echo "$(readlink -f "$library")=$library" ;;
        *) echo "$(readlink -f "$library")=/usr/lib/x86_64-linux-gnu/$(basename "$library")" ;;
    esac
done
