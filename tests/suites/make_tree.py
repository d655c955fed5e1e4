"""Makes a tree with everything that a backup must keep, the same for every run."""

import os
import random
import socket
import stat
import struct
import sys

MOMENT = 1_600_000_000_123_456_789


def acl(*entries):
    """A POSIX ACL as its extended attribute holds it."""
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


USER_OBJ, USER, GROUP_OBJ, GROUP, MASK, OTHER, NOBODY = 1, 2, 4, 8, 16, 32, 0xFFFFFFFF
ACCESS = acl((USER_OBJ, 6, NOBODY), (USER, 4, 1), (GROUP_OBJ, 4, NOBODY), (GROUP, 6, 2),
             (MASK, 6, NOBODY), (OTHER, 0, NOBODY))
DEFAULT = acl((USER_OBJ, 7, NOBODY), (USER, 5, 1), (GROUP_OBJ, 5, NOBODY),
              (MASK, 5, NOBODY), (OTHER, 0, NOBODY))


def main():
    root = sys.argv[1]
    chance = random.Random(11)
    os.makedirs(root)
    os.chdir(root)

    def put(name, data):
        with open(name, "wb") as file:
            file.write(data)

    for number in range(25):
        os.makedirs(f"dir{number}/deep/er")
        for size in (0, 1, 4095, 4096, 4097, 70_000):
            put(f"dir{number}/deep/size-{size}", chance.randbytes(size))
    put("large", chance.randbytes(9_000_000))
    for name in ("space in name", "new\nline", "ünïcødé", "-dash", "n" * 255, "back\\slash", "*?["):
        put(name, name.encode())
    put(b"not \xff utf-8", b"bytes")

    with open("sparse", "wb") as file:
        for offset in (0, 5 << 20, 64 << 20):
            file.seek(offset)
            file.write(chance.randbytes(10_000))
        file.truncate(100 << 20)
    with open("all hole", "wb") as file:
        file.truncate(30 << 20)

    for number in range(5):
        os.link("large", f"dir{number}/linked")
    os.link("dir1/deep/size-1", "dir2/other link")
    os.symlink("large", "link")
    os.symlink("nowhere/" + "t" * 200, "dangling")
    os.symlink("/" + "long/" * 800, "long link")
    os.mkfifo("fifo")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("socket")
    if os.geteuid() == 0:
        os.mknod("null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
        os.mknod("block", stat.S_IFBLK | 0o600, os.makedev(7, 200))
        os.chown("dir3/deep", 1, 2)
        os.chown("dir3/deep/size-1", 65534, 12345)
        os.chown("link", 2, 2, follow_symlinks=False)

    os.setxattr("large", "user.comment", b"a value")
    os.setxattr("large", "user.binary", bytes(range(256)) * 4)
    os.setxattr("dir5", "user.on a directory", b"")
    os.setxattr("dir6/deep/size-1", "user.empty", b"")
    os.setxattr("dir7/deep/size-4096", "system.posix_acl_access", ACCESS)
    os.setxattr("dir8", "system.posix_acl_default", DEFAULT)

    os.chmod("dir9/deep/size-1", 0o4755)
    os.chmod("dir10/deep/size-1", 0o2755)
    os.chmod("dir11", 0o1777)
    os.chmod("dir12/deep/size-1", 0)
    for directory, folders, files in os.walk(".", topdown=False):
        for name in files + folders:
            moment = MOMENT + chance.randrange(10**17)
            os.utime(os.path.join(directory, name), ns=(moment, moment), follow_symlinks=False)
    os.utime("dir13/deep/size-1", ns=(-5_000_000_001, -5_000_000_001))


main()
