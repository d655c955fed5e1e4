#!/usr/bin/env python3
"""A key service for benchmarks: it protects nothing, and answers after a set time.

    slow_kms.py MILLISECONDS     a plugin as in docs/PLUGIN_PROTOCOL.md

Every answer comes MILLISECONDS after its request, however many there are at once, and
costs as little of the processor as Python lets it: what is measured is kmsfs.
"""

import base64
import collections
import hashlib
import json
import os
import select
import sys
import time

latency = float(sys.argv[1]) / 1000


def serve():
    """One thread does both: two would wait for each other's turn in Python."""
    due = collections.deque()  # (when, request), the first to come first
    rest, more = b"", True
    while due or more:
        wait = max(0, due[0][0] - time.monotonic()) if due else None
        if not more:
            time.sleep(wait)
        elif select.select([0], [], [], wait)[0]:
            data = os.read(0, 1 << 16)
            more = bool(data)
            *lines, rest = (rest + data).split(b"\n")
            when = time.monotonic() + latency
            due.extend((when, line) for line in lines)
        now, answers = time.monotonic(), []
        while due and due[0][0] <= now:
            answers.append(json.dumps(answer(json.loads(due.popleft()[1]))))
        if answers:
            sys.stdout.write("\n".join(answers) + "\n")
            sys.stdout.flush()


def answer(request):
    match request["op"]:
        case "hello":
            return ok(request, protocol=1, name="slow")
        case "describe":
            return ok(request, facts={"name": "slow"})
        case "generate":
            key = os.urandom(request["length"])
            return ok(request, plaintext=text(key), wrapped=text(mark(request) + key))
        case "wrap":
            key = base64.b64decode(request["plaintext"])
            return ok(request, wrapped=text(mark(request) + key))
        case "unwrap":
            wrapped = base64.b64decode(request["wrapped"])
            if wrapped[:16] != mark(request):
                return refusal(request, "rejected")
            return ok(request, plaintext=text(wrapped[16:]))
        case _:
            return refusal(request, "unsupported")


def mark(request):
    """Stands for the binding to the context."""
    return hashlib.md5(json.dumps(request["context"], sort_keys=True).encode()).digest()


def ok(request, **fields):
    return {"id": request["id"], "ok": fields}


def refusal(request, kind):
    return {"id": request["id"], "error": {"class": kind, "detail": request["op"]}}


def text(data):
    return base64.b64encode(data).decode()


serve()
