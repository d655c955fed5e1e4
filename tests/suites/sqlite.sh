#!/usr/bin/env bash
# SQLite in every journal mode: the same contents as on the backing filesystem, readers
# beside a writer, and nothing lost after the writer was killed.
# shellcheck source=tests/suites/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
suite sqlite
volume

modes=(delete truncate persist memory wal off)
kills=${QUICK:+2}
kills=${kills:-8}

# load MODE: a database of 20,000 rows, changed and vacuumed, as text.
load() {
    local database=$1.db
    sqlite3 "$database" >/dev/null <<END
PRAGMA journal_mode = $1;
PRAGMA synchronous = FULL;
CREATE TABLE item (id INTEGER PRIMARY KEY, name TEXT UNIQUE, data BLOB);
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 20000)
INSERT INTO item SELECT i, 'name ' || i, CAST(printf('%.*c', i % 500, 'x') AS BLOB) FROM n;
BEGIN; DELETE FROM item WHERE id % 3 = 0; COMMIT;
BEGIN; UPDATE item SET name = name || ' changed' WHERE id % 7 = 0; COMMIT;
CREATE INDEX item_data ON item (length(data));
VACUUM;
BEGIN; UPDATE item SET data = zeroblob(3000) WHERE id % 50 = 1; COMMIT;
PRAGMA wal_checkpoint(TRUNCATE);
END
    sqlite3 "$database" 'PRAGMA journal_mode; PRAGMA integrity_check; SELECT count(*) FROM item'
    sqlite3 "$database" .dump | sha256sum
}

check 'the program is there' sqlite3 --version
for mode in "${modes[@]}"; do
    check "$mode: the contents are those on the backing filesystem" same load "$mode"
    check "$mode: the writer killed $kills times" \
        "$PYTHON" "$suites/sqlite_kill.py" --mode "$mode" --kills "$kills" "$DIR/kill-$mode.db" "$WORK/kill-$mode.log"
done
check 'is mounted again' remount
reopen() {
    local mode
    for mode in "${modes[@]}"; do
        sqlite3 "$mode.db" 'PRAGMA integrity_check'
        sqlite3 "$mode.db" .dump | sha256sum
    done
}
check 'reads the same after the mount' same reopen
finish
