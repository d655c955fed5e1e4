#!/usr/bin/env bash
# pjdfstest: nothing fails, and no test is skipped that the backing filesystem runs.
#
# One test can't run on any FUSE mount: link_count_max asks the C library for LINK_MAX,
# which answers 127, "unknown", for every FUSE filesystem. What it tests is tested here.
# shellcheck source=tests/suites/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
suite pjdfstest
volume

cat >"$WORK/pjdfstest.toml" <<'END'
[features]
posix_fallocate = {}
rename_ctime = {}
stat_st_birthtime = {}
utime_now = {}
utimensat = {}

[settings]
naptime = 0.01

# Users that every Debian system has, each with a group of its own.
[dummy_auth]
entries = [["daemon", "daemon"], ["bin", "bin"]]
END

# run DIRECTORY NAME: the tests' results, in NAME.ok, NAME.failed and NAME.skipped.
run() {
    NO_COLOR=1 pjdfstest -c "$WORK/pjdfstest.toml" -p "$1" -s /dev/shm >"$WORK/$2.log" 2>&1 || true
    local result
    for result in ok FAILED skipped; do
        awk -v result="$result" 'NF == 2 && $2 == result { print $1 }' "$WORK/$2.log" |
            sort >"$WORK/$2.${result,,}"
    done
    grep -a 'Summary' "$WORK/$2.log"
}

nothing_fails() {
    grep -A 4 'FAILED$' "$WORK/tested.log" || true
    [ ! -s "$WORK/tested.failed" ]
    local ran
    ran=$(cat "$WORK"/tested.{ok,failed,skipped} | wc -l)
    echo "$ran tests were listed"
    [ "$ran" -ge 390 ]
}

no_other_skips() {
    # tests skipped here that ran on the backing filesystem
    comm -13 "$WORK/reference.skipped" "$WORK/tested.skipped" |
        { grep -vx 'link::link_count_max' || true; } | tee "$WORK/more-skips"
    [ ! -s "$WORK/more-skips" ]
}

# Makes links to one file until it may have no more, and prints why and how many.
link_limit() {
    "$PYTHON" - <<'END'
import errno, os, shutil
os.makedirs("links")
open("links/0", "w").close()
try:
    for number in range(1, 200_000):
        os.link("links/0", f"links/{number}")
except OSError as error:
    print(errno.errorcode[error.errno])
print(os.stat("links/0").st_nlink)
shutil.rmtree("links")
END
}

reference_is_sound() {
    cat "$WORK/reference.failed"
    [ ! -s "$WORK/reference.failed" ] && [ -s "$WORK/reference.ok" ]
}

check 'runs on the backing filesystem' run "$REFERENCE" reference
check 'the backing filesystem passes' reference_is_sound
check 'runs' run "$DIR" tested
sed 's/^/      /' "$WORK/check.log"
check 'no test fails' nothing_fails
check 'no test is skipped that the backing filesystem runs' no_other_skips
check 'a file may have as many links as on the backing filesystem' same link_limit
finish
