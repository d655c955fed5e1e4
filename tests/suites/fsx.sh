#!/usr/bin/env bash
# Random operations on a file, with five seeds, two processes on two files at a time:
# the published fsx, and our exerciser for the operations that it lacks.
# shellcheck source=tests/suites/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
suite fsx
volume

operations=${QUICK:+5000}
operations=${operations:-100000}

# Without msync: it syncs the file, and would be most of the run. The last check has it.
cat >"$WORK/fsx.toml" <<'END'
nomsyncafterwrite = true
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
sed 's/^nomsyncafterwrite.*/nomsyncafterwrite = false/' "$WORK/fsx.toml" >"$WORK/msync.toml"

# run_published CONFIGURATION OPERATIONS SEED
run_published() {
    mkdir -p "$WORK/artifacts"
    NO_COLOR=1 fsx -q -f "$WORK/$1.toml" -N "$2" -S "$3" -P "$WORK/artifacts" \
        "$DIR/fsx.$3" 2>&1 | tail -n 60
}
published() { run_published fsx "$operations" "$1"; }

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
    local failures=0
    for process in "${processes[@]}"; do
        wait "$process" || failures=$((failures + 1))
    done
    [ "$failures" -eq 0 ]
}

for command in published exerciser; do
    check "$command: seeds 1 and 2, $operations operations each" together "$command" 1 2
    check "$command: seeds 3 and 4, $operations operations each" together "$command" 3 4
    check "$command: seed 5, $operations operations" together "$command" 5
done
check 'published: seed 6, every mapped write synced' run_published msync $((operations / 20)) 6
finish
