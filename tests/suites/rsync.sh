#!/usr/bin/env bash
# rsync: a tree with links, holes, attributes and odd names is copied whole, and a
# second run finds nothing to do.
# shellcheck source=tests/suites/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
suite rsync
volume

source=$REFERENCE/tree
copy() { rsync -aHAX --numeric-ids "$@"; }
transfers_nothing() {
    copy --itemize-changes "$@" >"$WORK/changes"
    head -n 20 "$WORK/changes"
    [ ! -s "$WORK/changes" ]
}
change() {
    local side
    for side in "$source" "$DIR/tree"; do
        echo changed >>"$side/dir1/deep/size-4096"
    done
    touch -d '2021-02-03 04:05:06.789 UTC' "$source/dir1/deep/size-4096" "$source/dir2/deep/size-1"
    rm -r "$source/dir20"
    mv "$source/dir21" "$source/renamed"
    copy --delete --inplace "$source/" "$DIR/tree/"
}

check 'makes a tree' "$PYTHON" "$suites/make_tree.py" "$source"
check 'copies it onto the mount' copy "$source/" "$DIR/tree/"
check 'the copy is the same' same_tree "$source" "$DIR/tree"
check 'a second run transfers nothing' transfers_nothing "$source/" "$DIR/tree/"
check 'nor by checksum' transfers_nothing --checksum "$source/" "$DIR/tree/"
check 'is mounted again' remount
check 'transfers nothing after the mount' transfers_nothing "$source/" "$DIR/tree/"
check 'the copy is the same after the mount' same_tree "$source" "$DIR/tree"
check 'copies changes' change
check 'the copy is the same after the changes' same_tree "$source" "$DIR/tree"
check 'copies it back' copy "$DIR/tree/" "$REFERENCE/back/"
check 'what came back is the same' same_tree "$source" "$REFERENCE/back"
check 'copies with holes' copy --sparse "$source/" "$DIR/sparse/"
holes() {
    local used
    used=$(stat -c '%b' "$DIR/sparse/all hole")
    echo "512-byte blocks of a file of 30 MiB that is all hole: $used"
    [ "$used" -le 64 ]
}
check 'the holes take no space' holes
finish
