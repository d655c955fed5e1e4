#!/usr/bin/env bash
# PostgreSQL: a cluster on the mount, with checksums, under pgbench, restarted, and
# killed in the middle. The server runs as `postgres` and listens on a socket only.
# shellcheck source=tests/suites/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
suite postgresql
volume

seconds=${QUICK:+5}
seconds=${seconds:-30}
bin=$(find /usr/lib/postgresql -maxdepth 2 -name bin | sort -V | tail -n 1)
data=$DIR/cluster
socket=$WORK/socket
logs=$WORK/logs
install -d -o postgres "$socket" "$logs"

as_postgres() {
    (cd / && setpriv --reuid postgres --regid postgres --init-groups \
        env PATH="$bin:$PATH" HOME="$logs" PGHOST="$socket" PGPORT=5432 PGUSER=postgres "$@")
}
query() { as_postgres psql -X -q -A -t -v ON_ERROR_STOP=1 -c "$1" bench; }

# Ends a server that is left, before the volume goes.
stop_what_is_left() {
    local process
    process=$(head -n 1 "$data/postmaster.pid" 2>/dev/null) || return 0
    kill -QUIT "$process" 2>/dev/null && wait_for_end "$process"
    return 0
}
trap 'set +e; stop_what_is_left; clean_up' EXIT

wait_for_end() {
    local tries
    for ((tries = 0; tries < 300; tries++)); do
        kill -0 "$1" 2>/dev/null || return 0
        sleep 0.1
    done
    echo "process $1 does not end" >&2
    return 1
}

start() {
    as_postgres pg_ctl -s -w -t 120 -D "$data" -l "$logs/server.log" start ||
        { tail -n 30 "$logs/server.log"; return 1; }
}
stop() { as_postgres pg_ctl -s -w -t 120 -D "$data" -m "$1" stop; }

make_cluster() {
    install -d -o postgres -m 0700 "$data"
    as_postgres initdb -D "$data" --data-checksums --auth=trust -E UTF8 --locale=C.UTF-8
    cat >>"$data/postgresql.conf" <<END
listen_addresses = ''
unix_socket_directories = '$socket'
shared_buffers = 32MB
max_wal_size = 128MB
checkpoint_timeout = 30s
END
    start
    as_postgres createdb bench
}

fill() {
    as_postgres pgbench -q -i -s 5 bench
    query 'CREATE EXTENSION amcheck'
}

# The four sums of pgbench's tables are equal after any number of whole transactions.
sums() {
    local sums
    sums=$(query 'SELECT count(DISTINCT s) FROM (SELECT sum(abalance) s FROM pgbench_accounts
        UNION ALL SELECT sum(bbalance) FROM pgbench_branches
        UNION ALL SELECT sum(tbalance) FROM pgbench_tellers
        UNION ALL SELECT coalesce(sum(delta), 0) FROM pgbench_history) x')
    echo "different sums: $sums"
    [ "$sums" = 1 ]
    [ "$(query 'SELECT count(*) FROM pgbench_accounts')" = 500000 ]
}

bench() {
    query 'TRUNCATE pgbench_history'
    query 'UPDATE pgbench_accounts SET abalance = 0 WHERE abalance <> 0'
    query 'UPDATE pgbench_branches SET bbalance = 0'
    query 'UPDATE pgbench_tellers SET tbalance = 0'
    as_postgres pgbench -n -c 4 -j 2 -T "$1" bench
}

indexes() { as_postgres pg_amcheck --all --heapallindexed --rootdescend; }
restart() { as_postgres pg_ctl -s -w -t 120 -D "$data" -l "$logs/server.log" -m fast restart; }

# Kills the server in the middle of pgbench. Each transaction that a client saw
# committed has a line in its log, and must be there after the recovery.
crash() {
    local bench postmaster committed found
    query 'TRUNCATE pgbench_history'
    query 'UPDATE pgbench_accounts SET abalance = 0 WHERE abalance <> 0'
    query 'UPDATE pgbench_branches SET bbalance = 0'
    query 'UPDATE pgbench_tellers SET tbalance = 0'
    rm -f "$logs"/transactions.*
    as_postgres pgbench -n -c 4 -j 2 -T 60 -l --log-prefix="$logs/transactions" bench &
    bench=$!
    sleep "$1"
    postmaster=$(head -n 1 "$data/postmaster.pid")
    kill -KILL "$postmaster"
    wait "$bench" || true
    # The backends notice by themselves, and let go of the shared memory.
    sleep 2
    start
    committed=$(cat "$logs"/transactions.* | wc -l)
    found=$(query 'SELECT count(*) FROM pgbench_history')
    echo "$committed transactions were seen committed, $found are there"
    [ "$committed" -gt 0 ]
    [ "$found" -ge "$committed" ]
    sums
}

checksums() { as_postgres pg_checksums --check -D "$data"; }
start_after_mount() { start && sums && indexes; }

check 'the server is installed' "$bin/postgres" --version
check 'makes a cluster' make_cluster
check 'fills it' fill
check "pgbench for $seconds s" bench "$seconds"
sed -n '/^tps/s/^/      /p' "$WORK/check.log"
check 'the sums are right' sums
check 'restarts' restart
check 'the sums are right after the restart' sums
check 'killed under load, recovers all that was committed' crash 3
sed 's/^/      /' "$WORK/check.log" | grep 'were seen' || true
check 'killed again' crash 5
check 'pg_amcheck finds no fault' indexes
check 'stops' stop fast
check 'every page has its checksum' checksums
check 'is mounted again' remount
check 'starts after the mount, with nothing changed' start_after_mount
check 'stops at the end' stop fast
finish
