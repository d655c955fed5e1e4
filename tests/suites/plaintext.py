"""Writes marked files through a mount, and looks for the marks on the backing side.

    plaintext.py write MARKERS DIRECTORY      writes, and lists the marks in MARKERS
    plaintext.py verify MARKERS DIRECTORY     they are there, read through the mount
    plaintext.py scan MARKERS DIRECTORY       they are nowhere in the backing directory
    plaintext.py differ FILE FILE             no 16 bytes of one file's body are in the other
    plaintext.py keys KMSFS BACKING DIRECTORY each file's wrapped key is its own
"""

import json
import mmap
import os
import secrets
import subprocess
import sys
from pathlib import Path

MARK = 64
# A mark may be cut by a block's end: then one of its quarters is whole.
QUARTER = 16


def mark():
    return secrets.token_urlsafe(MARK)[:MARK].encode()


def write(markers, directory):
    listed = []

    def new(kind):
        listed.append((kind, mark()))
        return listed[-1][1]

    def path(name):
        return os.path.join(os.fsencode(directory), name)

    def put(name, data):
        with open(path(name), "wb") as file:
            file.write(data)

    for size in (MARK, 100, 4000, 4096, 4097, 20_000, 135_000, 1_000_000):
        room = size - MARK
        for place in sorted({0, room // 2, room}):
            data = bytearray(os.urandom(size))
            data[place : place + MARK] = new("content")
            put(b"%d-%d" % (size, place), data)
    put(b"repeated", new("content") * 2000)
    put(b"large", b"\0" * 300_000 + new("content") + b"\0" * 300_000)
    # Across the edge of a block.
    put(b"edge", b"a" * (4096 - 30) + new("content"))

    put(b"append", b"first ")
    with open(path(b"append"), "ab") as file:
        file.write(new("content"))
    put(b"overwritten", new("content") * 200)
    with open(path(b"overwritten"), "r+b") as file:
        file.seek(1000)
        file.write(new("content"))
        file.truncate(1500)
    with open(path(b"mapped"), "w+b") as file:
        file.truncate(100_000)
        with mmap.mmap(file.fileno(), 0) as mapping:
            mapping[50_000 : 50_000 + MARK] = new("content")
            mapping.flush()
    page = mmap.mmap(-1, 4096)
    page[100 : 100 + MARK] = new("content")
    direct = os.open(path(b"direct"), os.O_WRONLY | os.O_CREAT | os.O_DIRECT, 0o600)
    os.write(direct, page)
    os.close(direct)
    with open(path(b"unlinked"), "wb") as file:
        os.unlink(path(b"unlinked"))
        file.write(new("content") * 100)
        file.flush()
        os.fsync(file.fileno())

    put(new("name"), b"")
    put(new("name") + b"n" * (255 - MARK), b"a long name")
    os.mkdir(path(new("name")))
    os.mkfifo(path(new("name")))
    os.link(path(b"append"), path(new("name")))
    os.symlink(b"/" + new("symlink target"), path(new("name")))
    put(b"old", b"")
    os.rename(path(b"old"), path(new("name")))
    os.setxattr(path(b"append"), b"user." + new("xattr"), b"value")
    os.setxattr(path(b"append"), b"user.value", new("xattr"))
    os.sync()
    with open(markers, "w") as file:
        for kind, bytes_ in listed:
            file.write(f"{kind}\t{bytes_.decode()}\n")


def read_markers(markers):
    with open(markers) as file:
        return [tuple(line.rstrip("\n").split("\t")) for line in file]


def everything(directory):
    """(kind, where, bytes) of all that a directory holds and says."""
    for folder, folders, files in os.walk(os.fsencode(directory)):
        for name in folders + files:
            path = os.path.join(folder, name)
            yield "name", path, name
            for attribute in os.listxattr(path, follow_symlinks=False):
                yield "xattr", path, os.fsencode(attribute)
                yield "xattr", path, os.getxattr(path, attribute, follow_symlinks=False)
            if os.path.islink(path):
                yield "symlink target", path, os.readlink(path)
            elif os.path.isfile(path):
                yield "content", path, Path(os.fsdecode(path)).read_bytes()


def scan(markers, directory):
    marks = [text.encode() for _, text in read_markers(markers)]
    pieces = [m[i : i + QUARTER] for m in marks for i in range(0, MARK, QUARTER)]
    seen = found = 0
    for kind, path, data in everything(directory):
        seen += 1
        for piece in pieces:
            if piece in data:
                print(f"{kind} {path!r} holds {piece.decode()}")
                found += 1
    print(f"{seen} names and contents scanned for {len(marks)} marks")
    if not seen:
        sys.exit("there is nothing to scan")
    if found:
        sys.exit(1)


def verify(markers, directory):
    held = b"\0".join(data for _, _, data in everything(directory))
    missing = [text for _, text in read_markers(markers) if text.encode() not in held]
    # Of the marks, one was in an unlinked file.
    if len(missing) != 1:
        sys.exit(f"{len(missing)} marks are not read back")


def differ(first, second):
    header = 4096
    body = Path(first).read_bytes()[header:]
    other = Path(second).read_bytes()[header:]
    pieces = {body[i : i + QUARTER] for i in range(0, len(body) - QUARTER, QUARTER)}
    pieces.discard(bytes(QUARTER))
    shared = [i for i in range(0, len(other) - QUARTER, QUARTER) if other[i : i + QUARTER] in pieces]
    if len(body) < 500_000 or shared:
        sys.exit(f"{len(shared)} of {len(other) // QUARTER} pieces are shared")


def fields(value, name):
    """All values of the fields called `name`, however deep."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key == name:
                yield inner
            yield from fields(inner, name)
    elif isinstance(value, list):
        for inner in value:
            yield from fields(inner, name)


def keys(kmsfs, backing, directory):
    inodes = set()
    for folder, _, files in os.walk(directory):
        for name in files:
            status = os.lstat(os.path.join(folder, name))
            if status.st_size and os.path.isfile(os.path.join(folder, name)):
                inodes.add(status.st_ino)
    wrapped, ids, stored = [], [], 0
    for folder, _, files in os.walk(backing):
        for name in files:
            path = os.path.join(folder, name)
            if os.lstat(path).st_ino not in inodes or os.path.islink(path):
                continue
            stored += 1
            out = subprocess.run([kmsfs, "info", "--json", path], check=True, capture_output=True)
            info = json.loads(out.stdout)
            wrapped += fields(info, "wrapped_key")
            ids += fields(info, "file")
    print(f"{len(inodes)} files, {stored} names, {len(wrapped)} wrapped keys, {len(set(wrapped))} different")
    if len(inodes) < 20 or len(set(wrapped)) != len(inodes) or len(set(ids)) != len(inodes):
        sys.exit("not every file has a key and an id of its own")


def main():
    commands = {"write": write, "verify": verify, "scan": scan, "differ": differ, "keys": keys}
    commands[sys.argv[1]](*sys.argv[2:])


main()
