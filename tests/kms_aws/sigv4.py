"""A proxy that lets a request to AWS through only if botocore signs it alike.

    sigv4.py UPSTREAM-PORT CLOCK-OFFSET

The emulators of AWS take any signature. This one computes it again, with the signer
of AWS's own Python SDK, from the request as it came. It prints its port, and then
reads access keys from its standard input, at whose end it ends: a JSON object a line
with id, secret, session token (or null) and whether the key has ended, which is
answered with an empty line. Its clock is ahead by the offset, in seconds.
"""

import datetime
import email.utils
import http.client
import http.server
import json
import re
import sys
import threading
import time

from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

UPSTREAM, OFFSET = int(sys.argv[1]), int(sys.argv[2])
KEYS = {}
FORMAT = "%Y%m%dT%H%M%SZ"
WINDOW = 300
AUTHORIZATION = re.compile(
    r"AWS4-HMAC-SHA256 Credential=([^/]+)/(\d{8})/([a-z0-9-]+)/([a-z]+)/aws4_request, ?"
    r"SignedHeaders=([a-z0-9;-]+), ?Signature=([0-9a-f]{64})"
)
# What a forger must not be free to choose.
MUST_BE_SIGNED = {"host", "x-amz-date", "x-amz-target"}


class Refused(Exception):
    """What AWS calls the refusal, and why."""


def verify(method, path, headers, body):
    match = AUTHORIZATION.fullmatch(headers.get("authorization", ""))
    if match is None:
        raise Refused("MissingAuthenticationTokenException", "Missing Authentication Token")
    name, day, region, service, signed, signature = match.groups()
    key = KEYS.get(name)
    token = headers.get("x-amz-security-token")
    if key is None or token != key["token"]:
        raise Refused(
            "UnrecognizedClientException", "The security token included in the request is invalid."
        )
    if key["ended"]:
        raise Refused(
            "ExpiredTokenException", "The security token included in the request is expired"
        )
    signed = signed.split(";")
    must = MUST_BE_SIGNED | ({"x-amz-security-token"} if token else set())
    if not must <= set(signed) or service != "kms":
        raise Refused("IncompleteSignatureException", "not signed: " + str(must - set(signed)))
    stamp = headers["x-amz-date"]
    when = datetime.datetime.strptime(stamp, FORMAT).replace(tzinfo=datetime.timezone.utc)
    late = time.time() + OFFSET - when.timestamp()
    if late > WINDOW:
        raise Refused("InvalidSignatureException", f"Signature expired: {stamp} is {late} s ago")
    if late < -WINDOW or stamp[:8] != day:
        raise Refused("InvalidSignatureException", f"Signature not yet current: {stamp}")
    request = AWSRequest(
        method,
        f"http://{headers['host']}{path}",
        {header: headers[header] for header in signed},
        body,
    )
    request.context["timestamp"] = stamp
    signer = SigV4Auth(Credentials(name, key["secret"], token), service, region)
    text = signer.string_to_sign(request, signer.canonical_request(request))
    if signer.signature(text, request) != signature:
        raise Refused(
            "InvalidSignatureException",
            "The request signature we calculated does not match the signature you provided.",
        )


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # An answer goes out in two pieces; the second must not wait for the first's
    # acknowledgement.
    disable_nagle_algorithm = True

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        headers = {name.lower(): value for name, value in self.headers.items()}
        try:
            verify(self.command, self.path, headers, body)
        except Refused as refused:
            code, message = refused.args
            answer = json.dumps({"__type": code, "message": message}).encode()
            self.answer(400, [("content-type", "application/x-amz-json-1.1")], answer)
            return
        upstream = http.client.HTTPConnection("127.0.0.1", UPSTREAM, timeout=60)
        upstream.request(self.command, self.path, body, headers)
        answer = upstream.getresponse()
        body = answer.read()
        passed = ("content-type", "x-amzn-requestid", "x-amzn-errortype")
        self.answer(
            answer.status,
            [(name, value) for name, value in answer.getheaders() if name.lower() in passed],
            body,
        )
        upstream.close()

    def answer(self, status, headers, body):
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def date_time_string(self, timestamp=None):
        return email.utils.formatdate((timestamp or time.time()) + OFFSET, usegmt=True)

    def log_message(self, *_):
        pass


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128


server = Server(("127.0.0.1", 0), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
print(server.server_address[1], flush=True)
for line in sys.stdin:
    key = json.loads(line)
    KEYS[key["id"]] = key
    print(flush=True)
