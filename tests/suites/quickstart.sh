#!/usr/bin/env bash
# scripts/quickstart, run twice, as root and as a user who is not.
# shellcheck source=tests/suites/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
suite quickstart

# A copy that every user can read.
checkout=$WORK/checkout
install -D "$suites/../../scripts/quickstart" "$suites/../../scripts/common.sh" -t "$checkout/scripts"
install -D "$KMSFS" -t "$checkout"
KMSFS=$checkout/kmsfs

# as USER COMMAND...: with a home directory of the user's own, and no keystore chosen.
as() {
    local user=$1
    shift
    setpriv --reuid "$user" --regid "$user" --clear-groups \
        env -u KMSFS_KEYSTORE -u XDG_DATA_HOME -u XDG_RUNTIME_DIR -u XDG_CONFIG_HOME \
        HOME="$WORK/home-$user" KMSFS="$KMSFS" PATH=/usr/bin:/bin "$@"
}

run_once() {
    local user=$1
    (cd / && as "$user" "$checkout/scripts/quickstart" "$BACKING" "$MOUNTPOINT") >"$WORK/output"
    cat "$WORK/output"
    grep -q 'Hello from kmsfs' "$WORK/output"
    grep -q '^000000 ' "$WORK/output"
    grep -q 'umount ' "$WORK/output"
    as "$user" grep -q 'Hello from kmsfs' "$MOUNTPOINT/hello.txt"
    [ "$(stat -c %U "$BACKING")" = "$user" ]
}
# The command that the last line says.
unmount_as_told() {
    local user=$1
    (cd / && as "$user" bash -c "$(grep ' umount ' "$WORK/output" | tail -n 1)")
    [ -z "$(mounts)" ]
}

for user in root daemon; do
    BACKING=$WORK/$user-backing
    MOUNTPOINT=$WORK/$user-mnt
    install -d -o "$user" -g "$user" "$WORK/home-$user"
    install -d -o "$user" -g "$user" "$BACKING" "$MOUNTPOINT"
    check "as $user" run_once "$user"
    check "as $user: again, with the mount up" run_once "$user"
    check "as $user: unmounts by the line it shows" unmount_as_told "$user"
    check "as $user: again, with the volume there" run_once "$user"
    check "as $user: unmounts" unmount_as_told "$user"
done
finish
