# shellcheck shell=bash
# Sourced by every suite: a volume to test on, checks, and cleaning up.
#
# A suite is a program. It prints one line a check and closes with the line
# "NAME: N passed, N failed"; its exit status is 0 only if nothing failed.
#
#   KMSFS      the binary under test (default: target/release/kmsfs)
#   TEST_DIR   test this directory instead of a kmsfs mount, to tell what another
#              filesystem does
#   WORK_BASE  where the work directory goes (default: /var/tmp)
#   QUICK      if not empty, a shorter run
#   KEEP       if not empty, the work directory is left behind
set -euo pipefail

suites=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck disable=SC2034 # used by the suites
PYTHON=${PYTHON:-/usr/bin/python3}
QUICK=${QUICK:-}
TEST_DIR=${TEST_DIR:-}
KMSFS=$(realpath -m "${KMSFS:-${CARGO_TARGET_DIR:-$suites/../../target}/release/kmsfs}")
export LC_ALL=C.UTF-8 TZ=UTC

passed=0
failed=0
background=()

# suite NAME: makes $WORK, a directory on the backing filesystem, and $REFERENCE in it,
# where a suite takes the steps it compares with.
suite() {
    NAME=$1
    started=$SECONDS
    # Short paths: pjdfstest makes sockets, whose paths may have 107 bytes.
    WORK=$(mktemp -d "${WORK_BASE:-/var/tmp}/${NAME:0:4}.XXXXXX")
    # Other users look into the mount: the way to it is open.
    chmod 0755 "$WORK"
    export KMSFS_KEYSTORE=$WORK/keystore
    REFERENCE=$WORK/native
    BACKING=$WORK/backing
    MOUNTPOINT=$WORK/mnt
    mkdir "$REFERENCE" "$BACKING" "$MOUNTPOINT"
    trap clean_up EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM HUP
}

# volume [OPTIONS]: $DIR becomes an empty directory on a fresh volume, mounted with
# OPTIONS; or an empty directory in $TEST_DIR.
volume() {
    mount_options=${1:-allow_other,default_permissions,suid,dev}
    if [ -n "$TEST_DIR" ]; then
        DIR=$(mktemp -d "$TEST_DIR/$NAME.XXXXXX")
        chmod 0755 "$DIR"
        return
    fi
    "$KMSFS" init --key local: "$BACKING" >/dev/null
    "$KMSFS" mount -o "$mount_options" "$BACKING" "$MOUNTPOINT"
    DIR=$MOUNTPOINT/v
    mkdir "$DIR"
}

# Unmounts and mounts again, so that nothing is answered from a cache.
remount() {
    [ -z "$TEST_DIR" ] || return 0
    unmount
    "$KMSFS" mount -o "$mount_options" "$BACKING" "$MOUNTPOINT"
}

# Unmounts, and waits for the daemon to end.
unmount() {
    [ -z "$TEST_DIR" ] || return 0
    "$KMSFS" umount "$MOUNTPOINT"
    local tries=100
    while [ -n "$(daemons)" ]; do
        tries=$((tries - 1))
        if [ "$tries" -eq 0 ]; then
            echo "the daemon still runs 10 s after the unmount: $(daemons)" >&2
            return 1
        fi
        sleep 0.1
    done
}

# The mounts in $WORK, by the kernel's word: what a user has mounted, root can't look at.
mounts() { awk -v work="$WORK/" 'index($2, work) == 1 { print $2 }' /proc/self/mounts; }

# The processes that run the binary under test on something in $WORK.
daemons() {
    local process
    for process in /proc/[0-9]*; do
        [ "$(readlink "$process/exe" 2>/dev/null)" = "$KMSFS" ] || continue
        tr '\0' '\n' <"$process/cmdline" 2>/dev/null | grep -qF "$WORK/" || continue
        echo "${process#/proc/}"
    done
}

# check DESCRIPTION COMMAND...: runs the command by itself, errexit on, and counts it.
# Never call it in a condition: bash would then ignore errexit inside.
check() {
    local description=$1 status since=$SECONDS
    shift
    set +e
    (
        set -e
        "$@"
    ) >"$WORK/check.log" 2>&1
    status=$?
    set -e
    if [ "$status" -eq 0 ]; then
        passed=$((passed + 1))
        printf 'ok    %s: %s (%d s)\n' "$NAME" "$description" $((SECONDS - since))
    else
        failed=$((failed + 1))
        printf 'FAIL  %s: %s (exit %d)\n' "$NAME" "$description" "$status"
        tail -n 40 "$WORK/check.log" | cut -c 1-300 | sed 's/^/      /'
    fi
}

# Ends the suite. A mount or a daemon that can't be ended in order is a failure.
finish() {
    if [ -n "$(mounts)" ]; then
        check 'unmounts, and the daemon ends' unmount
    fi
    printf '%s: %d passed, %d failed\n' "$NAME" "$passed" "$failed"
    printf '(%s took %d s)\n' "$NAME" $((SECONDS - started))
    [ "$failed" -eq 0 ]
    exit
}

clean_up() {
    local status=$? process mount
    set +e
    trap - EXIT INT TERM HUP
    for process in "${background[@]}"; do
        kill -KILL "$process" 2>/dev/null
    done
    # First the daemon: whoever looks at the mount of one that hangs, hangs with it.
    for process in $(daemons); do
        kill -KILL "$process"
    done
    for mount in $(mounts); do
        umount -l "$mount"
    done
    [ -z "$TEST_DIR" ] || [ -z "${DIR:-}" ] || rm -rf "$DIR"
    if [ -n "${KEEP:-}" ]; then
        echo "left behind: $WORK"
    elif [ -z "$(mounts)" ]; then
        rm -rf "$WORK"
    fi
    exit "$status"
}

# same_tree A B [OPTIONS]: both trees have the same names, attributes and contents.
same_tree() {
    local a=$1 b=$2
    shift 2
    "$PYTHON" "$suites/tree.py" "$@" "$a" >"$WORK/tree.a"
    "$PYTHON" "$suites/tree.py" "$@" "$b" >"$WORK/tree.b"
    diff "$WORK/tree.a" "$WORK/tree.b" | head -n 40
    cmp -s "$WORK/tree.a" "$WORK/tree.b"
}

# same COMMAND...: the command, run in $REFERENCE and in $DIR, prints the same.
same() {
    (cd "$REFERENCE" && "$@") >"$WORK/same.reference"
    (cd "$DIR" && "$@") >"$WORK/same.tested"
    diff "$WORK/same.reference" "$WORK/same.tested"
}
