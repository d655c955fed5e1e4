#!/usr/bin/env python3
"""Side-by-side filesystem benchmark: kmsfs against its peers, in one run.

    compare.py [--systems native,kmsfs,gocryptfs,securefs] [--rounds 3] [--only seqwrite,...] [--json FILE] [--markdown FILE]

Every round runs each workload on every system in turn, so that drift of the
machine hits all of them alike; what counts is the RATIO to a peer in the same
run, never an absolute figure. Peers come from Debian: gocryptfs securefs cryfs
encfs, and fio. KMSFS names the kmsfs binary (default target/release/kmsfs);
KMSFS_INIT / KMSFS_MOUNT override the two commands ({backing}, {mnt}, {bin}).
Extra systems: --extra 'name=mount command with {backing} {mnt}'.
Needs root (it drops the page cache between workloads).
"""
import argparse, json, os, shutil, statistics, subprocess, sys, time
from datetime import date
from pathlib import Path

ROOT = Path(os.environ.get("BENCH_DIR", "/var/tmp")) / "kmsfs-bench"
BIN = os.environ.get("KMSFS", "target/release/kmsfs")
INIT = os.environ.get("KMSFS_INIT", "{bin} init --key local: {backing}")
MOUNT = os.environ.get("KMSFS_MOUNT", "{bin} mount {backing} {mnt}")
PW = "echo pw"


def sh(cmd, **kw):
    return subprocess.run(cmd, shell=True, check=True, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True, **kw).stdout


def is_mounted(p):
    return any(line.split()[1] == str(p) for line in open("/proc/mounts"))


class System:
    def __init__(self, name, base, mount=None):
        self.name, self.backing, self.mnt, self.mount_cmd = name, base / "backing", base / "mnt", mount
        self.proc = None
        for d in (self.backing, self.mnt):
            d.mkdir(parents=True)

    def up(self):
        b, m = self.backing, self.mnt
        n = self.name
        env = dict(os.environ, PASSPHRASE="pw", CRYFS_FRONTEND="noninteractive")
        if n == "native":
            self.mnt = b
            return self
        if n == "kmsfs":
            if INIT.strip():
                sh(INIT.format(bin=BIN, backing=b, mnt=m))
            cmd = MOUNT.format(bin=BIN, backing=b, mnt=m)
        elif n == "gocryptfs":
            sh(f"gocryptfs -q -init -scryptn 10 -extpass '{PW}' {b}")
            cmd = f"gocryptfs -q -extpass '{PW}' {b} {m}"
        elif n == "securefs":
            sh(f"securefs create --pass pw {b}")
            cmd = f"securefs mount --pass pw -b {b} {m}"
        elif n == "cryfs":
            cmd = f"echo pw | cryfs -f {b} {m} -o allow_other"
        elif n == "encfs":
            cmd = f"encfs --standard --extpass='{PW}' -f {b} {m}"
        else:
            cmd = self.mount_cmd.format(backing=b, mnt=m)
        self.proc = subprocess.Popen(cmd, shell=True, env=env, stdin=subprocess.DEVNULL if "echo pw |" not in cmd else None,
                                     stdout=open(ROOT / f"{n}.log", "w"), stderr=subprocess.STDOUT)
        for _ in range(200):
            if is_mounted(m):
                return self
            time.sleep(0.05)
        raise RuntimeError(f"{n} did not mount: " + open(ROOT / f"{n}.log").read())

    def down(self):
        if self.name != "native" and is_mounted(self.mnt):
            for _ in range(50):
                if subprocess.run(["umount", str(self.mnt)], capture_output=True).returncode == 0:
                    break
                time.sleep(0.1)
        if self.proc:
            try:
                self.proc.wait(10)
            except subprocess.TimeoutExpired:
                self.proc.kill()


def cold():
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")


def timed(cmd, **kw):
    t = time.monotonic()
    sh(cmd, **kw)
    return time.monotonic() - t


def fio(d, args, field, op):
    out = subprocess.run(f"fio --name=j --directory={d} --output-format=json --group_reporting --fallocate=none {args}",
                         shell=True, check=True, capture_output=True, text=True).stdout
    return json.loads(out[out.index("{"):])["jobs"][0][op][field]


def busy():
    """Seconds that all processors have worked so far: programs, daemons and the kernel's threads."""
    user, nice, system, _, _, irq, softirq = map(int, open("/proc/stat").readline().split()[1:8])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def cpu_per_gib(d, args, op):
    """Processor seconds for each GiB, with what it takes until all of it is on the disk."""
    before = busy()
    kib = fio(d, args, "io_kbytes", op)
    os.sync()
    return (busy() - before) / (kib / 2**20)


MB = 1 / 1024  # fio reports KiB/s


def workloads(size, tree):
    f = f"--size={size} --filename=big"
    return {
        # name: (unit, higher is better, needs cold cache, function(dir))
        "seqwrite": ("MB/s", True, True, lambda d: fio(d, f"{f} --rw=write --bs=1M --end_fsync=1", "bw", "write") * MB),
        "seqread_cold": ("MB/s", True, True, lambda d: fio(d, f"{f} --rw=read --bs=1M", "bw", "read") * MB),
        "seqread_warm": ("MB/s", True, False, lambda d: fio(d, f"{f} --rw=read --bs=1M --invalidate=0 --loops=2", "bw", "read") * MB),
        "cpu_write": ("s/GiB", False, True, lambda d: cpu_per_gib(d, f"--size={size} --filename=cpu --rw=write --bs=1M --end_fsync=1", "write")),
        "cpu_read": ("s/GiB", False, True, lambda d: cpu_per_gib(d, f"{f} --rw=read --bs=1M", "read")),
        "randread_cold": ("IOPS", True, True, lambda d: fio(d, f"{f} --rw=randread --bs=4k --io_size=24M --numjobs=1 --norandommap --randseed=7", "iops", "read")),
        "randread_2jobs": ("IOPS", True, True, lambda d: fio(d, f"{f} --rw=randread --bs=4k --io_size=24M --numjobs=2 --norandommap", "iops", "read")),
        "randwrite": ("IOPS", True, True, lambda d: fio(d, f"{f} --rw=randwrite --bs=4k --io_size=64M --end_fsync=1 --norandommap", "iops", "write")),
        "fsyncwrite": ("IOPS", True, True, lambda d: fio(d, f"{f} --rw=randwrite --bs=4k --io_size=6M --fdatasync=1 --norandommap", "iops", "write")),
        "mmap_rw": ("IOPS", True, True, lambda d: fio(d, f"{f} --ioengine=mmap --rw=randrw --bs=4k --io_size=32M --norandommap", "iops", "read")),
        "create_4k": ("s", False, True, lambda d: timed(f"mkdir {d}/small && fio --name=c --directory={d}/small --rw=write --bs=4k --filesize=4k --nrfiles=4000 --openfiles=64 --file_service_type=sequential --create_on_open=1 --fallocate=none --output=/dev/null")),
        "read_small_cold": ("s", False, True, lambda d: timed(f"cat {d}/small/* > /dev/null")),
        "rm_small": ("s", False, False, lambda d: timed(f"rm -rf {d}/small")),
        "untar": ("s", False, True, lambda d: timed(f"mkdir {d}/t && tar xf {tree} -C {d}/t && sync -f {d}/t")),
        "find_stat_cold": ("s", False, True, lambda d: timed(f"find {d}/t -printf '%s %T@ %m\\n' > /dev/null")),
        "find_stat_warm": ("s", False, False, lambda d: timed(f"find {d}/t -printf '%s %T@ %m\\n' > /dev/null")),
        "grep_cold": ("s", False, True, lambda d: timed(f"grep -rc zzzqqq {d}/t > /dev/null || true")),
        "cp_tree": ("s", False, False, lambda d: timed(f"cp -a {d}/t {d}/t2")),
        "rm_tree": ("s", False, False, lambda d: timed(f"rm -rf {d}/t {d}/t2")),
        "sqlite": ("s", False, True, lambda d: timed(f"{sys.executable} -c \"import sqlite3;c=sqlite3.connect('{d}/db',isolation_level=None);c.execute('create table t(a,b)');[c.execute('insert into t values(?,?)',(i,'x'*200)) for i in range(400)];c.execute('begin');[c.execute('insert into t values(?,?)',(i,'x'*200)) for i in range(40000)];c.execute('commit')\"")),
    }


def make_tree():
    """A tarball of ~6,000 real source files (the machine's Rust crates or Python library)."""
    tar = ROOT / "tree.tar"
    if not tar.exists():
        src = Path(sys.prefix) / "lib"
        sh(f"cd {src} && find . -type f -size -200k | sort | head -6000 | tar cf {tar} -T -")
    return tar


def write_table(path, a, names, res, loads):
    others = [n for n in names if n != a.base]
    kernel = os.uname().release.split("-")[0]
    lines = [f"Medians of {a.rounds} interleaved rounds, {date.today()}, {os.cpu_count()} cores, Linux {kernel}.", "",
             "| row | unit | " + " | ".join(names) + " | " + " | ".join(f"vs {n}" for n in others) + " |",
             "|---|---|" + "---:|" * (len(names) + len(others))]
    for w in res:
        unit, hib = loads[w][0], loads[w][1]
        med = {n: statistics.median(v) if v else float("nan") for n, v in res[w].items()}
        base = med[a.base]
        ratio = {n: base / med[n] if hib else med[n] / base for n in others}
        lines.append(f"| {w} | {unit} | " + " | ".join("%.4g" % med[n] for n in names) + " | "
                     + " | ".join("%.2f" % ratio[n] for n in others) + " |")
    mark = "<!-- table -->"
    before, _, after = path.read_text().split(mark)
    path.write_text(before + mark + "\n" + "\n".join(lines) + "\n" + mark + after)


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--systems", default="native,kmsfs,gocryptfs,securefs")
    ap.add_argument("--extra", action="append", default=[])
    ap.add_argument("--rounds", type=int, default=3)
    ap.add_argument("--size", default="512M")
    ap.add_argument("--only", default="")
    ap.add_argument("--base", default="kmsfs", help="system the ratios are of")
    ap.add_argument("--json")
    ap.add_argument("--markdown", help="put the table into this file, between its <!-- table --> lines")
    a = ap.parse_args()
    ROOT.mkdir(parents=True, exist_ok=True)
    extra = dict(e.split("=", 1) for e in a.extra)
    names = a.systems.split(",") + list(extra)
    loads = workloads(a.size, make_tree())
    only = set(a.only.split(",")) if a.only else set(loads)
    res = {w: {n: [] for n in names} for w in loads if w in only}
    for r in range(a.rounds):
        systems = []
        try:
            for n in names:
                base = ROOT / f"{n}.{os.getpid()}.{r}"
                shutil.rmtree(base, ignore_errors=True)
                systems.append(System(n, base, extra.get(n)).up())
            for w, (unit, hib, need_cold, fn) in loads.items():
                if w not in only:
                    continue
                # Who comes first, or last, is at an advantage.
                order = systems[r % len(systems):] + systems[:r % len(systems)]
                for s in order:
                    if need_cold:
                        cold()
                    try:
                        v = fn(s.mnt)
                        res[w][s.name].append(v)
                    except Exception as e:  # a peer that fails a workload is reported, not hidden
                        print(f"! {s.name} {w}: {str(getattr(e, 'stderr', None) or e)[:200]}", file=sys.stderr)
        finally:
            for s in systems:
                s.down()
                shutil.rmtree(ROOT / f"{s.name}.{os.getpid()}.{r}", ignore_errors=True)
    print("%-16s %5s " % ("workload", "unit") + " ".join("%12s" % n for n in names) + "   " +
          " ".join("%s/%s" % (a.base, n) for n in names if n != a.base))
    for w in res:
        unit, hib = loads[w][0], loads[w][1]
        med = {n: statistics.median(v) if v else float("nan") for n, v in res[w].items()}
        base = med.get(a.base, float("nan"))
        ratios = [("%.2f" % ((base / med[n]) if hib else (med[n] / base))) for n in names if n != a.base] if base == base else []
        print("%-16s %5s " % (w, unit) + " ".join("%12.4g" % med[n] for n in names) + "   " + "  ".join(ratios))
    print("ratios: above 1 means %s is faster" % a.base)
    if a.markdown:
        write_table(Path(a.markdown), a, names, res, loads)
    if a.json:
        Path(a.json).write_text(json.dumps(res, indent=1))


if __name__ == "__main__":
    main()
