#!/usr/bin/env python3
"""A key service for benchmarks: it protects nothing, and answers after a set time.

    slow_kms.py MILLISECONDS     a plugin as in docs/PLUGIN_PROTOCOL.md

Every answer comes MILLISECONDS after its request, however many there are at once, and
costs as little of the processor as Python lets it: what is measured is kmsfs.
"""

import base64
import hashlib
import json
import os
import queue
import sys
import threading
import time

latency = float(sys.argv[1]) / 1000
waiting = queue.SimpleQueue()


def serve():
    """The delay is the same for all, so the first to come is the first to be due."""
    while True:
        due, line = waiting.get()
        early = due - time.monotonic()
        if early > 0:
            # Whoever is answered already does not wait for this one.
            sys.stdout.flush()
            time.sleep(early)
        sys.stdout.write(json.dumps(answer(json.loads(line))) + "\n")
        if waiting.empty():
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


threading.Thread(target=serve, daemon=True).start()
for line in sys.stdin:
    waiting.put((time.monotonic() + latency, line))
