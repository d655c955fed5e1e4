#!/usr/bin/env bash
# Random operations on a file, with five seeds, two processes on two files at a time:
# the published fsx, and our exerciser for the operations that it lacks.
# shellcheck source=tests/suites/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
suite fsx
volume

operations=${QUICK:+5000}
operations=${operations:-100000}

cat >"$WORK/fsx.toml" <<'END'
flen = 262144
[opsize]
max = 65536
[weights]
close_open = 1
invalidate = 1
read = 10
write = 10
mapread = 10
mapwrite = 10
truncate = 5
fsync = 0.2
fdatasync = 0.2
posix_fallocate = 3
punch_hole = 8
sendfile = 3
posix_fadvise = 1
copy_file_range = 8
END

published() {
    mkdir -p "$WORK/artifacts"
    NO_COLOR=1 fsx -q -f "$WORK/fsx.toml" -N "$operations" -S "$1" -P "$WORK/artifacts" \
        "$DIR/fsx.$1" 2>&1 | tail -n 60
}

exerciser() {
    "$PYTHON" "$suites/exerciser.py" --seed "$1" --operations "$operations" "$DIR/exerciser.$1"
}

# together COMMAND SEED...: the command once for each seed, at the same time.
together() {
    local command=$1 seed process processes=()
    shift
    for seed; do
        "$command" "$seed" &
        processes+=("$!")
    done
    for process in "${processes[@]}"; do
        wait "$process"
    done
}

for command in published exerciser; do
    check "$command: seeds 1 and 2, $operations operations each" together "$command" 1 2
    check "$command: seeds 3 and 4, $operations operations each" together "$command" 3 4
    check "$command: seed 5, $operations operations" together "$command" 5
done
finish
