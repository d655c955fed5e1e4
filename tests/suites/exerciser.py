"""Random operations on one file, compared with a model in memory after each one.

Covers what the published fsx does not: zero range, fallocate with KEEP_SIZE, append,
O_DIRECT, a second descriptor, a mapping that stays while the file changes under it,
and SEEK_HOLE/SEEK_DATA. Everything follows from the seed.
"""

import argparse
import collections
import ctypes
import errno
import mmap
import os
import random
import sys

LENGTH = 1 << 20
LARGEST = 128 << 10
ALIGN = 4096
KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE = 1, 2, 16

libc = ctypes.CDLL(None, use_errno=True)
libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long]


class Mismatch(Exception):
    pass


class Exerciser:
    def __init__(self, path, seed):
        self.path = path
        self.random = random.Random(seed)
        self.model = bytearray()
        self.recent = collections.deque(maxlen=30)
        self.mapping = None
        self.fds = []
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644))
        self.open()
        # An anonymous mapping is aligned as O_DIRECT wants it.
        self.aligned = mmap.mmap(-1, LARGEST)

    def open(self):
        """Two descriptors that are used at random, one for appending, one for O_DIRECT."""
        read_write = [os.open(self.path, os.O_RDWR) for _ in range(2)]
        self.append_fd = os.open(self.path, os.O_WRONLY | os.O_APPEND)
        self.direct_fd = os.open(self.path, os.O_RDWR | os.O_DIRECT)
        self.read_write = read_write
        self.fds = [*read_write, self.append_fd, self.direct_fd]

    def close(self):
        self.unmap()
        for fd in self.fds:
            os.close(fd)

    # Choices

    @property
    def fd(self):
        return self.random.choice(self.read_write)

    def offset(self):
        return self.random.randrange(LENGTH)

    def span(self, limit=LENGTH):
        """A range that begins before `limit` and ends within LENGTH."""
        start = self.random.randrange(max(limit, 1))
        size = self.random.randrange(1, LARGEST)
        if self.random.random() < 0.3:
            # The edges of blocks and pages are where mistakes are.
            start -= start % ALIGN
            size = max(ALIGN, size - size % ALIGN)
        return start, min(size, LENGTH - start)

    def existing(self):
        start, size = self.span(len(self.model))
        return start, min(size, len(self.model) - start)

    def data(self, size):
        return self.random.randbytes(size)

    # What the model says

    def grow(self, size):
        if size > len(self.model):
            self.model.extend(bytes(size - len(self.model)))

    def put(self, start, data):
        self.grow(start + len(data))
        self.model[start : start + len(data)] = data

    def expect(self, what, start, actual):
        expected = self.model[start : start + len(actual)]
        if actual == expected:
            return
        at = next(i for i, (a, b) in enumerate(zip(actual, expected)) if a != b)
        wrong = sum(a != b for a, b in zip(actual, expected))
        raise Mismatch(
            f"{what} of {len(actual)} bytes at {start:#x}: {wrong} bytes are wrong, the first"
            f" at {start + at:#x}: {actual[at : at + 16].hex()} for {expected[at : at + 16].hex()}"
        )

    # Operations

    def read(self):
        start, size = self.span()
        data = os.pread(self.fd, size, start)
        expected = max(0, min(size, len(self.model) - start))
        if len(data) != expected:
            raise Mismatch(f"read at {start:#x} gave {len(data)} bytes for {expected}")
        self.expect("read", start, data)
        return start, size

    def write(self):
        start, size = self.span()
        data = self.data(size)
        if os.pwrite(self.fd, data, start) != size:
            raise Mismatch("short write")
        self.put(start, data)
        return start, size

    def write_small(self):
        start, size = self.offset(), self.random.randrange(1, 600)
        data = self.data(min(size, LENGTH - start))
        os.pwrite(self.fd, data, start)
        self.put(start, data)
        return start, len(data)

    def append(self):
        size = min(self.random.randrange(1, 20_000), LENGTH - len(self.model))
        data = self.data(size)
        start = len(self.model)
        if size:
            os.write(self.append_fd, data)
            self.put(start, data)
        return start, size

    def map_read(self):
        if not self.model:
            return None
        start, size = self.existing()
        with mmap.mmap(self.fd, len(self.model), access=mmap.ACCESS_READ) as mapping:
            self.expect("mapped read", start, mapping[start : start + size])
        return start, size

    def map_write(self):
        """Written through a mapping that is synced, or only unmapped."""
        if not self.model:
            return None
        start, size = self.existing()
        data = self.data(size)
        with mmap.mmap(self.fd, len(self.model)) as mapping:
            mapping[start : start + size] = data
            if self.random.random() < 0.3:
                mapping.flush()
        self.put(start, data)
        return start, size

    def map_keep(self):
        """Makes the mapping that stays, or reads and writes through the one there is."""
        if self.mapping is None:
            if not self.model:
                return None
            self.mapping = mmap.mmap(self.fd, len(self.model))
            return "new"
        length = min(len(self.mapping), len(self.model))
        if length == 0:
            return None
        start = self.random.randrange(length)
        size = min(self.random.randrange(1, LARGEST), length - start)
        self.expect("kept mapping's read", start, self.mapping[start : start + size])
        if self.random.random() < 0.5:
            data = self.data(size)
            self.mapping[start : start + size] = data
            self.put(start, data)
        return start, size

    def unmap(self):
        if self.mapping is not None:
            self.mapping.close()
            self.mapping = None

    def truncate(self):
        size = self.random.randrange(LENGTH + 1)
        if self.random.random() < 0.5:
            size = self.random.randrange(len(self.model) + 1)
        # Whole pages of a mapping that lie behind the end of file must not be touched.
        if self.mapping is not None and size < len(self.mapping):
            self.unmap()
        os.ftruncate(self.fd, size)
        del self.model[size:]
        self.grow(size)
        return size

    def fallocate(self, mode, start, size):
        if libc.fallocate(self.fd, mode, start, size) != 0:
            number = ctypes.get_errno()
            raise OSError(number, f"fallocate, mode {mode}: {os.strerror(number)}")
        return start, size

    def allocate(self):
        start, size = self.span()
        self.grow(start + size)
        return self.fallocate(0, start, size)

    def allocate_keep_size(self):
        return self.fallocate(KEEP_SIZE, *self.span())

    def clear(self, start, size):
        end = min(start + size, len(self.model))
        if start < end:
            self.model[start:end] = bytes(end - start)

    def punch_hole(self):
        start, size = self.span()
        self.clear(start, size)
        return self.fallocate(PUNCH_HOLE | KEEP_SIZE, start, size)

    def zero_range(self):
        start, size = self.span()
        self.grow(start + size)
        self.clear(start, size)
        return self.fallocate(ZERO_RANGE, start, size)

    def zero_range_keep_size(self):
        start, size = self.span()
        self.clear(start, size)
        return self.fallocate(ZERO_RANGE | KEEP_SIZE, start, size)

    def copy_range(self):
        if not self.model:
            return None
        source, size = self.existing()
        target = self.offset()
        size = min(size, LENGTH - target, abs(target - source))
        done = 0
        while done < size:
            copied = os.copy_file_range(
                self.fd, self.fd, size - done, source + done, target + done
            )
            if copied == 0:
                raise Mismatch("copy_file_range copies nothing")
            done += copied
        self.put(target, bytes(self.model[source : source + size]))
        return source, target, size

    def direct_read(self):
        start, size = self.span()
        start -= start % ALIGN
        size = max(ALIGN, size - size % ALIGN)
        view = memoryview(self.aligned)[:size]
        count = os.preadv(self.direct_fd, [view], start)
        expected = max(0, min(size, len(self.model) - start))
        if count != expected:
            raise Mismatch(f"direct read at {start:#x} gave {count} bytes for {expected}")
        self.expect("direct read", start, bytes(view[:count]))
        return start, size

    def direct_write(self):
        start, size = self.span()
        start -= start % ALIGN
        size = max(ALIGN, size - size % ALIGN)
        data = self.data(size)
        self.aligned[:size] = data
        view = memoryview(self.aligned)[:size]
        if os.pwritev(self.direct_fd, [view], start) != size:
            raise Mismatch("short direct write")
        self.put(start, data)
        return start, size

    def seek(self):
        """A hole reads as zeros, and every byte that isn't zero lies in data."""
        if not self.model:
            return None
        fd, start, end = self.fd, self.random.randrange(len(self.model)), len(self.model)
        try:
            data = os.lseek(fd, start, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            data = end
        if any(self.model[start:data]):
            raise Mismatch(f"SEEK_DATA from {start:#x} skips data, to {data:#x}")
        hole = os.lseek(fd, start, os.SEEK_HOLE)
        if not start <= hole <= end:
            raise Mismatch(f"SEEK_HOLE from {start:#x} gives {hole:#x}, the end is {end:#x}")
        return start

    def sync(self):
        os.fsync(self.fd)

    def sync_data(self):
        os.fdatasync(self.fd)

    def drop_cache(self):
        os.posix_fadvise(self.fd, 0, 0, os.POSIX_FADV_DONTNEED)

    def reopen(self):
        self.close()
        self.open()

    OPERATIONS = {
        read: 12,
        write: 8,
        write_small: 6,
        append: 3,
        map_read: 8,
        map_write: 8,
        map_keep: 8,
        truncate: 5,
        allocate: 2,
        allocate_keep_size: 2,
        punch_hole: 5,
        zero_range: 4,
        zero_range_keep_size: 4,
        copy_range: 6,
        direct_read: 4,
        direct_write: 4,
        seek: 4,
        sync: 0.3,
        sync_data: 0.3,
        drop_cache: 2,
        reopen: 2,
    }

    def step(self, number):
        operation = self.random.choices(*self.weights)[0]
        self.recent.append(f"{number} {operation.__name__} (began)")
        detail = operation(self)
        self.recent[-1] = f"{number} {operation.__name__} {detail} size={len(self.model):#x}"
        size = os.fstat(self.fd).st_size
        if size != len(self.model):
            raise Mismatch(f"the size is {size:#x} for {len(self.model):#x}")

    def run(self, operations):
        self.weights = list(self.OPERATIONS), list(self.OPERATIONS.values())
        for number in range(operations):
            self.step(number)
        self.reopen()
        with open(self.path, "rb") as file:
            data = file.read()
        if len(data) != len(self.model):
            raise Mismatch(f"at the end {len(data)} bytes for {len(self.model)}")
        self.expect("last read", 0, data)
        self.close()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--operations", type=int, default=100_000)
    parser.add_argument("file")
    args = parser.parse_args()
    exerciser = Exerciser(args.file, args.seed)
    try:
        exerciser.run(args.operations)
    except (Mismatch, OSError) as error:
        print(f"seed {args.seed}: {error}; the last operations:", file=sys.stderr)
        print("\n".join(exerciser.recent), file=sys.stderr)
        sys.exit(1)
    print(f"seed {args.seed}: {args.operations} operations without a difference")


main()
