#!/usr/bin/env python3
"""A plugin for kmsfs, to read and to test with: docs/PLUGIN_PROTOCOL.md.

    plugin.py STATE.json

STATE.json has the keys, in the clear: {"keys": {NAME: {"versions": {NUMBER: HEX}}}}.
A real plugin would ask its service instead; its keys never leave that. The cipher is
made of HMAC-SHA256 alone, since Python has no other without packages: do not copy it.

For tests, {"trouble": {"kind": …, "left": N}} has the next N answers go wrong.
"""

import base64
import hashlib
import hmac
import json
import os
import sys
import threading
import time

PATH = sys.argv[1]
lock = threading.Lock()


class Refusal(Exception):
    def __init__(self, kind, detail, **more):
        self.answer = {"class": kind, "detail": detail, **more}


def answer(request):
    """The "ok" part of the answer to a request."""
    if request["op"] == "hello":
        return {"protocol": 1, "name": "sample"}
    if request["op"] not in OPERATIONS:
        raise Refusal("unsupported", request["op"])
    with lock:
        with open(PATH) as file:
            keys = json.load(file)["keys"]
    key = keys.get(request.get("key", "default"))
    if key is None:
        raise Refusal("not-found", "no such key")
    if key.get("denied"):
        raise Refusal("denied", "not yours")
    if key.get("disabled"):
        raise Refusal("disabled", "by its owner")
    return OPERATIONS[request["op"]](key, request)


def generate(key, request):
    plain = os.urandom(request["length"])
    return {"plaintext": text(plain), **seal(key, request, plain)}


def wrap(key, request):
    return seal(key, request, base64.b64decode(request["plaintext"]))


def unwrap(key, request):
    return {"plaintext": text(open_(key, request))}


def rewrap(key, request):
    return seal(key, request, open_(key, request))


def describe(key, request):
    return {"facts": {"name": request.get("key", "default"), "version": newest(key)}}


OPERATIONS = {f.__name__: f for f in (generate, wrap, unwrap, rewrap, describe)}


def newest(key):
    return max(key["versions"], key=int)


def associated(request):
    return "&".join(f"{k}={v}" for k, v in sorted(request["context"].items())).encode()


def stream(secret, nonce, length):
    return hmac.digest(secret, b"stream" + nonce, "sha512")[:length]


def tag(secret, request, body):
    return hmac.digest(secret, b"tag" + hashlib.sha256(associated(request)).digest() + body, "sha256")


def seal(key, request, plain):
    version = newest(key)
    secret = bytes.fromhex(key["versions"][version])
    nonce = os.urandom(16)
    body = nonce + bytes(a ^ b for a, b in zip(plain, stream(secret, nonce, len(plain))))
    return {"wrapped": text(body + tag(secret, request, body)), "version": version}


def open_(key, request):
    if request["version"] not in key["versions"]:
        raise Refusal("not-found", "no such version")
    secret = bytes.fromhex(key["versions"][request["version"]])
    wrapped = base64.b64decode(request["wrapped"])
    body, found = wrapped[:-32], wrapped[-32:]
    if not hmac.compare_digest(found, tag(secret, request, body)):
        raise Refusal("rejected", "it does not authenticate")
    return bytes(a ^ b for a, b in zip(body[16:], stream(secret, body[:16], len(body) - 16)))


def text(data):
    return base64.b64encode(data).decode()


def say(line):
    with lock:
        sys.stdout.write(line + "\n")
        sys.stdout.flush()


def serve(request):
    try:
        trouble(request)
        line = {"id": request["id"], "ok": answer(request)}
    except Refusal as refusal:
        line = {"id": request["id"], "error": refusal.answer}
    say(json.dumps(line))


def trouble(request):
    """What a good plugin never does."""
    with lock:
        with open(PATH) as file:
            state = json.load(file)
        found = state.get("trouble", {})
        if request["op"] == "hello" or found.get("left", 0) == 0:
            return
        found["left"] -= 1
        with open(PATH + ".new", "w") as file:
            json.dump(state, file)
        os.replace(PATH + ".new", PATH)
    match found["kind"]:
        case "throttled":
            raise Refusal("throttled", "slow down", retry_after_ms=20)
        case "failing":
            raise Refusal("unavailable", "it is ill")
        case "slow":
            time.sleep(found["seconds"])
        case "garbage":
            say("what?")
        case "oversized":
            say("x" * 1_000_000)
        case "dying":
            print("I am\x1b[31m dying of", os.environ.get("SECRET", "nothing"), file=sys.stderr)
            with lock:
                sys.stdout.write('{"id": ')
                sys.stdout.flush()
                os._exit(3)


for line in sys.stdin:
    threading.Thread(target=serve, args=(json.loads(line),), daemon=True).start()
