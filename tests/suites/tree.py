"""Prints a tree, an entry a line, with everything that a faithful copy keeps."""

import argparse
import hashlib
import os
import stat
import sys


def contents(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def describe(path, name, status, links, args):
    fields = [repr(name), stat.filemode(status.st_mode)]
    if not args.no_owners:
        fields.append(f"{status.st_uid}:{status.st_gid}")
    if not args.no_times:
        fields.append(f"mtime={status.st_mtime_ns}")
    if not stat.S_ISDIR(status.st_mode):
        # A directory's size and link count are the filesystem's own affair.
        fields.append(f"links={status.st_nlink}")
        first = links.setdefault((status.st_dev, status.st_ino), name)
        if first != name:
            fields.append(f"same-as={first!r}")
    if stat.S_ISREG(status.st_mode):
        fields += [f"size={status.st_size}", contents(path)]
    elif stat.S_ISLNK(status.st_mode):
        fields.append(f"-> {os.readlink(path)!r}")
    elif stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode):
        fields.append(f"device={status.st_rdev}")
    for attribute in sorted(os.listxattr(path, follow_symlinks=False)):
        value = os.getxattr(path, attribute, follow_symlinks=False)
        fields.append(f"{attribute}={value.hex()}")
    return " ".join(fields)


def walk(directory, prefix, links, args):
    for entry in sorted(os.listdir(directory)):
        path = os.path.join(directory, entry)
        name = os.path.join(prefix, entry)
        if name in args.skip:
            continue
        status = os.lstat(path)
        print(describe(path, name, status, links, args))
        if stat.S_ISDIR(status.st_mode):
            walk(path, name, links, args)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--no-times", action="store_true")
    parser.add_argument("--no-owners", action="store_true")
    parser.add_argument("--skip", action="append", default=[], metavar="NAME")
    parser.add_argument("directory")
    args = parser.parse_args()
    sys.setrecursionlimit(10_000)
    walk(args.directory, "", {}, args)


main()
