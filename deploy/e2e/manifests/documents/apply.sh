#!/usr/bin/env bash
# apply.sh FILE: applies an object of a document as the document says, by a here-document in which the shell fills in
# variables.
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
. "$here/variables.sh"
eval "cat <<EOF
$(cat "$here/$1")
EOF
" | "$here/../../kubectl.sh" apply -f -
