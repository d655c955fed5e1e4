"""Kills a process that writes to an SQLite database, again and again.

Every transaction adds a row and keeps a sum beside; after its commit the writer notes
the row's number in a log outside the filesystem under test. After each kill the database
must be whole, its sum right, and every noted row there. A reader runs all along.

In the journal modes `memory` and `off` SQLite itself promises nothing for a writer
killed inside a transaction: there it is killed while it waits after a commit.
"""

import argparse
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time


def connect(path, mode):
    connection = sqlite3.connect(path, timeout=60, isolation_level=None)
    connection.execute(f"PRAGMA journal_mode = {mode}")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA cache_size = 20")  # so that it spills inside transactions
    return connection


def write(args):
    connection = connect(args.database, args.mode)
    log = os.open(args.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    chance = random.Random()
    while True:
        connection.execute("BEGIN IMMEDIATE")
        (number,) = connection.execute("SELECT coalesce(max(id), 0) + 1 FROM entry").fetchone()
        value = chance.randrange(1_000_000)
        connection.execute(
            "INSERT INTO entry VALUES (?, ?, ?)", (number, value, chance.randbytes(2000))
        )
        connection.execute("UPDATE entry SET data = ? WHERE id % 97 = ?",
                           (chance.randbytes(3000), number % 97))
        connection.execute("UPDATE total SET value = value + ?", (value,))
        connection.execute("COMMIT")
        os.write(log, f"{number}\n".encode())
        if args.mode in ("memory", "off") and number % 20 == 0:
            os.write(1, b"waiting\n")
            signal.pause()


def read(args):
    """Until it is killed: what a reader sees is never half a transaction."""
    connection = sqlite3.connect(args.database, timeout=60)
    while True:
        check_sum(connection)
        time.sleep(0.002)


def check_sum(connection):
    total, found = connection.execute(
        "SELECT (SELECT value FROM total), (SELECT coalesce(sum(value), 0) FROM entry)"
    ).fetchone()
    if total != found:
        sys.exit(f"the sum is {found} for {total}")


def check(args):
    connection = connect(args.database, args.mode)
    (result,) = connection.execute("PRAGMA integrity_check").fetchone()
    if result != "ok":
        sys.exit(f"integrity_check: {result}")
    check_sum(connection)
    numbers = {row[0] for row in connection.execute("SELECT id FROM entry")}
    connection.close()
    with open(args.log) as log:
        noted = {int(line) for line in log}
    if noted - numbers:
        sys.exit(f"{len(noted - numbers)} committed rows are lost")
    return len(numbers)


def start(args, role, **options):
    command = [sys.executable, __file__, "--role", role, "--mode", args.mode, args.database, args.log]
    return subprocess.Popen(command, **options)


def kill(args):
    connection = connect(args.database, args.mode)
    connection.execute("CREATE TABLE entry (id INTEGER PRIMARY KEY, value INTEGER, data BLOB)")
    connection.execute("CREATE TABLE total (value INTEGER)")
    connection.execute("INSERT INTO total VALUES (0)")
    connection.close()
    open(args.log, "w").close()
    chance = random.Random(1)
    rows = 0
    # A reader in `off` could see what a transaction has not committed yet.
    reader = None if args.mode == "off" else start(args, "read")
    try:
        for _ in range(args.kills):
            writer = start(args, "write", stdout=subprocess.PIPE)
            if args.mode in ("memory", "off"):
                writer.stdout.readline()
            else:
                time.sleep(0.15 + chance.random() * 0.5)
            writer.kill()
            writer.wait()
            writer.stdout.close()
            before, rows = rows, check(args)
            if rows <= before and args.mode in ("memory", "off"):
                sys.exit("the writer wrote nothing")
        if reader and reader.poll() is not None:
            sys.exit(f"the reader ended with {reader.returncode}")
    finally:
        if reader:
            reader.kill()
            reader.wait()
    if rows == 0:
        sys.exit("no transaction was ever committed")
    print(f"{args.mode}: {rows} rows")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mode", required=True)
    parser.add_argument("--kills", type=int, default=8)
    parser.add_argument("--role", default="kill", choices=["kill", "write", "read"])
    parser.add_argument("database")
    parser.add_argument("log")
    args = parser.parse_args()
    {"kill": kill, "write": write, "read": read}[args.role](args)


main()
