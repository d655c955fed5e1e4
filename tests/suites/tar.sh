#!/usr/bin/env bash
# tar: out and back in again with holes, hard links, extended attributes and ACLs.
# shellcheck source=tests/suites/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
suite tar
volume

keep=(--sparse --xattrs '--xattrs-include=*' --acls --numeric-owner)
pack() {
    # The one thing that no archive keeps is a socket.
    tar -C "$1" "${keep[@]}" -cf "$2" . 2>&1 | { grep -v 'socket ignored' || true; }
}
unpack() {
    mkdir "$2"
    tar -C "$2" "${keep[@]}" -xpf "$1"
}
sparse_stays_sparse() {
    local used
    used=$(stat -c '%b' "$DIR/tree/sparse")
    echo "512-byte blocks of a file of 100 MiB with 30 kB of data: $used"
    [ "$used" -le 1024 ]
    [ "$(stat -c '%s' "$DIR/tree/sparse")" -eq $((100 << 20)) ]
}

check 'makes a tree' "$PYTHON" "$suites/make_tree.py" "$REFERENCE/tree"
rm "$REFERENCE/tree/socket"
check 'packs it on the backing filesystem' pack "$REFERENCE/tree" "$WORK/first.tar"
check 'unpacks it on the mount' unpack "$WORK/first.tar" "$DIR/tree"
check 'the tree is the same' same_tree "$REFERENCE/tree" "$DIR/tree"
check 'the holes are kept' sparse_stays_sparse
check 'is mounted again' remount
check 'packs it on the mount' pack "$DIR/tree" "$DIR/second.tar"
check 'unpacks that on the backing filesystem' unpack "$DIR/second.tar" "$REFERENCE/back"
check 'what came back is the same' same_tree "$REFERENCE/tree" "$REFERENCE/back"
check 'tar finds no difference' tar -C "$DIR/tree" "${keep[@]}" --compare -f "$WORK/first.tar"
finish
