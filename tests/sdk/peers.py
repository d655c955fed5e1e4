"""A test server and kmsfs's providers, as a service's own client sees them."""

import json
import os
import subprocess
import sys
import urllib.request

VOLUME = "0102030405060708090a0b0c0d0e0f10"
FILE = "ffeeddccbbaa99887766554433221100"
OTHER_FILE = "00" * 16


class Server:
    """The test server, until the program ends."""

    def __init__(self, program):
        self.process = subprocess.Popen(
            [program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.place = json.loads(self.process.stdout.readline())

    def __getattr__(self, name):
        return self.place[name]

    def command(self, command):
        url = f"http://{self.place['http']}/_test/{command}"
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        opener.open(url).read()

    def stop(self):
        self.process.stdin.close()
        self.process.wait(10)


class Kmsfs:
    """kmsfs's own provider of the key `uri`."""

    def __init__(self, program, uri, environment=None):
        self.uri = uri
        self.process = subprocess.Popen(
            [program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **(environment or {})},
        )

    def ask(self, action, file=FILE, **fields):
        request = {"do": action, "uri": self.uri, "file": file, "volume": VOLUME, **fields}
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def stop(self):
        self.process.stdin.close()
        self.process.wait(10)


class Checks:
    """Counts what holds and what does not."""

    def __init__(self):
        self.passed = self.failed = 0

    def equal(self, name, found, expected):
        if found == expected:
            self.passed += 1
            print(f"ok    {name}")
        else:
            self.failed += 1
            print(f"FAIL  {name}: {found!r}, not {expected!r}")

    def refused(self, name, code, call):
        try:
            result = f"no error, but {call()!r}"
        except Exception as error:
            result = getattr(error, "code", None) or repr(error)
        self.equal(name, result, code)

    def finish(self):
        print(f"{self.passed} passed, {self.failed} failed")
        sys.exit(1 if self.failed else 0)
