#!/usr/bin/env python3
"""Does an operation cost the same however much there is? Beside the backing filesystem.

    scale.py [--only directory,tree,sparse,open,clients] [--most 1000000] [--markdown FILE]

For each kind of growth the same operations are timed at several sizes, on a mount and
on the backing filesystem itself (native). What counts is that the figures of a row stay
what they are, or grow no faster than native's. KMSFS names the binary (default
target/release/kmsfs), BENCH_DIR the place to work (default /var/tmp). Needs root (it
drops the kernel's caches, so that the daemon is asked).
"""
import argparse, os, random, resource, shutil, subprocess, sys, time
from datetime import date
from pathlib import Path

BIN = os.environ.get("KMSFS", "target/release/kmsfs")
ROOT = Path(os.environ.get("BENCH_DIR", "/var/tmp")) / f"kmsfs-scale.{os.getpid()}"
BLOCK = os.urandom(4096)


def drop_caches(everything=False):
    """Dentries and inodes, which also asks the daemon to forget; with `everything` data, too."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3" if everything else "2")
    # The kernel goes on telling the daemon what it forgot.
    pid, before = daemon(), None
    while before != (now := Path(f"/proc/{pid}/stat").read_text().split()[13:15]):
        before = now
        time.sleep(0.3)


def each(count, act):
    """Microseconds that one of `count` calls of `act` takes."""
    start = time.monotonic()
    for i in range(count):
        act(i)
    return (time.monotonic() - start) / count * 1e6


def sizes(most):
    found = [n for n in (1_000, 10_000, 100_000, 1_000_000) if n < most]
    return found + [most]


def touch(path):
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))


class Rows:
    """Figures by row and size, of one system."""

    def __init__(self):
        self.rows = {}

    def add(self, row, size, figure):
        self.rows.setdefault(row, {})[size] = figure


def directory(rows, top, most):
    """One directory with more and more empty files."""
    d, made = top / "one", 0
    d.mkdir()
    for size in sizes(most):
        for made in range(made, size - 1000):
            touch(d / f"file-{made}")
        made = size - 1000
        rows.add("create", size, each(1000, lambda i: touch(d / f"file-{made + i}")))
        made = size
        drop_caches()
        some = [random.randrange(size) for _ in range(1000)]
        rows.add("stat by name", size, each(1000, lambda i: os.stat(d / f"file-{some[i]}")))
        some = [random.randrange(size) for _ in range(1000)]
        rows.add("look for what is not there", size, each(1000, lambda i: (d / f"none-{some[i]}").exists()))
        drop_caches()
        start = time.monotonic()
        listed = sum(1 for entry in os.scandir(d) if entry.stat(follow_symlinks=False))
        rows.add("list and stat, an entry", size, (time.monotonic() - start) / listed * 1e6)
        assert listed == size, f"{listed} entries instead of {size}"
        some = random.sample(range(size), 500)
        rows.add("rename", size, each(500, lambda i: os.rename(d / f"file-{some[i]}", d / f"new-{some[i]}")))
        rows.add("unlink", size, each(500, lambda i: os.unlink(d / f"new-{some[i]}")))
        for i in some:
            touch(d / f"file-{i}")


def tree(rows, top, most):
    """More and more files of 100 bytes, 100 to a directory, a hundred directories to another."""
    d, made = top / "tree", 0
    path = lambda i: d / str(i // 10_000) / str(i // 100 % 100) / str(i)

    def write(i):
        if i % 100 == 0:
            path(i).parent.mkdir(parents=True)
        fd = os.open(path(i), os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        os.write(fd, BLOCK[:100])
        os.close(fd)

    for size in sizes(most):
        for made in range(made, size - 1000):
            write(made)
        made = size - 1000
        rows.add("write a file", size, each(1000, lambda i: write(made + i)))
        made = size
        drop_caches()
        some = [random.randrange(size) for _ in range(1000)]
        rows.add("read a file", size, each(1000, lambda i: path(some[i]).read_bytes()))
        drop_caches()
        start = time.monotonic()
        out = subprocess.run(["find", d, "-type", "f", "-printf", "."], stdout=subprocess.PIPE, check=True).stdout
        rows.add("find, a file", size, (time.monotonic() - start) / len(out) * 1e6)
        assert len(out) == size, f"{len(out)} files instead of {size}"
    start = time.monotonic()
    subprocess.run(["rm", "-r", d], check=True)
    rows.add("rm -r, a file", most, (time.monotonic() - start) / most * 1e6)


def sparse(rows, top, _):
    """Blocks here and there in a file that is ever longer."""
    gib, f = 1 << 30, os.open(top / "sparse", os.O_CREAT | os.O_RDWR)
    for size in (1, 10, 100, 1024):
        os.ftruncate(f, size * gib)
        at = [random.randrange(size * gib // 4096) * 4096 for _ in range(500)]
        before = os.fstat(f).st_blocks

        def write(i):
            os.pwrite(f, BLOCK, at[i])
            os.fdatasync(f)

        rows.add("write a block and sync", f"{size} GiB", each(500, write))
        rows.add("KiB on the disk, a block", f"{size} GiB", (os.fstat(f).st_blocks - before) / 2 / 500)
        drop_caches(everything=True)
        rows.add("read a block", f"{size} GiB", each(500, lambda i: os.pread(f, 4096, at[i]) == BLOCK or sys.exit("wrong data")))
        rows.add("find the next data", f"{size} GiB", each(500, lambda i: os.lseek(f, at[i] - at[i] % gib, os.SEEK_DATA)))
    os.close(f)


def open_files(rows, top, _):
    """More and more files that stay open."""
    d, files = top / "open", []
    d.mkdir()
    for size in (100, 1_000, 10_000):
        new = lambda i: files.append(os.open(d / str(len(files)), os.O_CREAT | os.O_RDWR))
        each(size - len(files) - 50, new)
        rows.add("open a new file", size, each(50, new))
        some = [random.choice(files) for _ in range(1000)]
        rows.add("write 4 KiB and sync", size, each(1000, lambda i: (os.pwrite(some[i], BLOCK, 0), os.fdatasync(some[i]))))
        drop_caches(everything=True)
        rows.add("read 4 KiB", size, each(1000, lambda i: os.pread(some[i], 4096, 0) == BLOCK or sys.exit("wrong data")))
    for f in files:
        os.close(f)


CLIENT = """
import os, sys, time
d, seconds = sys.argv[1], float(sys.argv[2])
os.mkdir(d); n = 0; block = os.urandom(4096)
sys.stdin.read()
end = time.monotonic() + seconds
while time.monotonic() < end:
    p = d + "/" + str(n)
    f = os.open(p, os.O_CREAT | os.O_WRONLY); os.write(f, block); os.close(f)
    f = os.open(p, os.O_RDONLY); assert os.read(f, 8192) == block; os.close(f)
    os.rename(p, p + "x"); os.stat(p + "x"); os.unlink(p + "x")
    n += 1
print(n)
"""


def clients(rows, top, _):
    """More and more processes that write, read, rename and remove files, each in its directory."""
    seconds = 5
    for size in (1, 4, 16, 64, 256):
        args = lambda i: [sys.executable, "-c", CLIENT, str(top / f"client-{size}-{i}"), str(seconds)]
        all_ = [subprocess.Popen(args(i), stdin=subprocess.PIPE, stdout=subprocess.PIPE) for i in range(size)]
        time.sleep(2 + size / 20)  # all of them have started
        for p in all_:
            p.stdin.close()
        done = sum(int(p.stdout.read()) for p in all_)
        assert all(p.wait() == 0 for p in all_), "a client failed"
        rows.add("a file's life, all clients together", size, seconds / done * 1e6)


KINDS = {"directory": (directory, "entries"), "tree": (tree, "files"), "sparse": (sparse, "length"),
         "open": (open_files, "open files"), "clients": (clients, "clients")}


def daemon():
    """The process that serves the mount, found by its command line."""
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            line = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if str(ROOT / "backing").encode() in line:
            return pid
    raise SystemExit("scale.py: the daemon is gone")


def resident():
    """MiB of the daemon's memory, at its highest and now, and its open descriptors."""
    pid = daemon()
    status = dict(line.split(":", 1) for line in open(f"/proc/{pid}/status"))
    mib = lambda name: int(status[name].split()[0]) // 1024
    return mib("VmHWM"), mib("VmRSS"), len(os.listdir(f"/proc/{pid}/fd"))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(KINDS))
    parser.add_argument("--most", type=int, default=1_000_000, help="entries and files at the end")
    parser.add_argument("--markdown", help="put the table into this file, between its <!-- scale --> lines")
    args = parser.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    native, backing, mount = (ROOT / name for name in ("native", "backing", "mount"))
    for d in (native, backing, mount):
        d.mkdir(parents=True)
    lines = [f"One run, {date.today()}, {os.cpu_count()} cores, Linux {os.uname().release.split('-')[0]}. "
             "Microseconds an operation: kmsfs, and native in brackets.", ""]
    subprocess.run([BIN, "init", backing], check=True, stdout=subprocess.DEVNULL)
    subprocess.run([BIN, "mount", backing, mount], check=True)
    try:
        for kind in args.only.split(","):
            run, unit = KINDS[kind]
            both = []
            for top in (native, mount):
                random.seed(7)
                both.append(Rows())
                run(both[-1], top, args.most)
            high, now, fds = resident()
            heads = list(dict.fromkeys(size for row in both[1].rows.values() for size in row))
            lines += ["| " + " | ".join([unit] + [f"{h:,}" if isinstance(h, int) else h for h in heads]) + " |",
                      "|---|" + "---:|" * len(heads)]
            for row, figures in both[1].rows.items():
                cell = lambda h: f"{figures[h]:.3g} ({both[0].rows[row][h]:.3g})" if h in figures else ""
                lines.append(f"| {row} | " + " | ".join(cell(h) for h in heads) + " |")
            lines += ["", f"Daemon after that: {now} MiB, {high} MiB at most; {fds} descriptors.", ""]
            print("\n".join(lines[-len(both[1].rows) - 5:]), flush=True)
    finally:
        for _ in range(100):
            if subprocess.run(["umount", mount], capture_output=True).returncode == 0:
                break
            time.sleep(0.1)
        shutil.rmtree(ROOT)
    if args.markdown:
        path, mark = Path(args.markdown), "<!-- scale -->"
        before, _, after = path.read_text().split(mark)
        path.write_text(before + mark + "\n" + "\n".join(lines).rstrip() + "\n" + mark + after)


if __name__ == "__main__":
    main()
