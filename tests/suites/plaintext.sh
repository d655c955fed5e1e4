#!/usr/bin/env bash
# Nothing written through the mount is found on the backing side, neither contents nor
# names, and every file has a data key of its own.
# shellcheck source=tests/suites/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
suite plaintext
volume

markers=$WORK/markers
scan() { "$PYTHON" "$suites/plaintext.py" scan "$markers" "$1"; }
written_right() { "$PYTHON" "$suites/plaintext.py" verify "$markers" "$DIR"; }

# The scan finds what is there to be found: it is run on an open copy too.
scan_can_find() {
    cp -a "$DIR" "$WORK/copy"
    if scan "$WORK/copy" >"$WORK/found"; then
        echo 'the scan finds nothing in plaintext files' >&2
        return 1
    fi
    local kind
    for kind in content name 'symlink target' xattr; do
        grep -q "^$kind" "$WORK/found"
    done
}

scan_by_grep() {
    # grep exits 1 where it finds nothing
    local status=0
    grep -raF -f <(cut -f 2 "$markers") "$BACKING" "$KMSFS_KEYSTORE" || status=$?
    [ "$status" -eq 1 ]
    find "$BACKING" "$KMSFS_KEYSTORE" -printf '%P %l\n' | grep -F -f <(cut -f 2 "$markers") || status=$?
    [ "$status" -eq 1 ]
}

# Same plaintext, different ciphertext: no two backing files share a stored block.
twins_differ() {
    cp "$DIR/large" "$DIR/twin"
    sync
    local first second
    first=$(find "$BACKING" -inum "$(stat -c %i "$DIR/large")")
    second=$(find "$BACKING" -inum "$(stat -c %i "$DIR/twin")")
    "$PYTHON" "$suites/plaintext.py" differ "$first" "$second"
}

wrapped_keys() { "$PYTHON" "$suites/plaintext.py" keys "$KMSFS" "$BACKING" "$DIR"; }

check 'writes marked files, names, links and attributes' "$PYTHON" "$suites/plaintext.py" write "$markers" "$DIR"
check 'the scan finds them in a plaintext copy' scan_can_find
check 'finds nothing in the backing directory while mounted' scan "$BACKING"
check 'equal files differ in every stored block' twins_differ
check 'each file has its own wrapped key' wrapped_keys
check 'is mounted again' remount
check 'reads what was written' written_right
check 'unmounts' unmount
check 'finds nothing in the backing directory' scan "$BACKING"
check 'finds nothing in the keystore' scan "$KMSFS_KEYSTORE"
check 'nor does grep' scan_by_grep
finish
