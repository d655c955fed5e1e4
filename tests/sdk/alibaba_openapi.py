"""Alibaba Cloud's SDK for the OpenAPI against the test server and kmsfs.

alibaba_openapi.py SERVER BRIDGE
"""

import base64
import sys

import requests
from alibabacloud_kms20160120 import models
from alibabacloud_kms20160120.client import Client
from alibabacloud_tea_openapi.models import Config

from peers import FILE, OTHER_FILE, VOLUME, Checks, Kmsfs, Server

CONTEXT = {"kmsfs:file": FILE, "kmsfs:volume": VOLUME}

sent = []
really_send = requests.Session.send


def remember(self, request, **options):
    sent.append(request.copy())
    return really_send(self, request, **options)


requests.Session.send = remember


def resend(change):
    """Sends the last request again, changed, and gives the refusal's code."""
    request = sent[-1].copy()
    change(request)
    session = requests.Session()
    session.trust_env = False
    return really_send(session, request).json().get("Code", "accepted")


def main(server_program, bridge_program):
    server = Server(server_program)
    checks = Checks()

    def client(identity=server.access_key_id, secret=server.access_key_secret):
        return Client(
            Config(
                access_key_id=identity,
                access_key_secret=secret,
                endpoint=server.http,
                protocol="HTTP",
                region_id="cn-test",
            )
        )

    sdk = client()
    environment = {
        "ALIBABA_CLOUD_ACCESS_KEY_ID": server.access_key_id,
        "ALIBABA_CLOUD_ACCESS_KEY_SECRET": server.access_key_secret,
    }
    uri = f"alibabakms://{server.http}/{server.key}?http=1&deadline=5"
    kmsfs = Kmsfs(bridge_program, uri, environment)

    def generate(size=32):
        request = models.GenerateDataKeyRequest(
            key_id=server.key, number_of_bytes=size, encryption_context=CONTEXT
        )
        return sdk.generate_data_key(request).body

    def decrypt(blob, context=CONTEXT):
        request = models.DecryptRequest(ciphertext_blob=blob, encryption_context=context)
        return sdk.decrypt(request).body

    def wrapped(body):
        return {
            "key_uri": f"alibabakms://{server.http}/{body.key_id}",
            "key_version": body.key_version_id,
            "ciphertext": base64.b64decode(body.ciphertext_blob).hex(),
        }

    def hexed(text):
        return base64.b64decode(text).hex()

    def blob(answer):
        return base64.b64encode(bytes.fromhex(answer["wrapped"]["ciphertext"])).decode()

    for size in (16, 24, 32):
        made = generate(size)
        checks.equal(f"the SDK's {size} bytes", len(base64.b64decode(made.plaintext)), size)
        checks.equal(
            f"kmsfs opens the SDK's {size} bytes",
            kmsfs.ask("unwrap", wrapped=wrapped(made)).get("key"),
            hexed(made.plaintext),
        )
        own = kmsfs.ask("generate", bytes=size)
        checks.equal(
            f"the SDK opens kmsfs's {size} bytes", hexed(decrypt(blob(own)).plaintext), own["key"]
        )

    key = "42" * 32
    own = kmsfs.ask("wrap", key=key)
    checks.equal("the SDK opens what kmsfs encrypted", hexed(decrypt(blob(own)).plaintext), key)
    request = models.EncryptRequest(
        key_id=server.alias,
        plaintext=base64.b64encode(bytes.fromhex(key)).decode(),
        encryption_context=CONTEXT,
    )
    checks.equal(
        "kmsfs opens what the SDK encrypted",
        kmsfs.ask("unwrap", wrapped=wrapped(sdk.encrypt(request).body)).get("key"),
        key,
    )
    request = models.ReEncryptRequest(
        ciphertext_blob=blob(own),
        destination_key_id=server.key,
        source_encryption_context=CONTEXT,
        destination_encryption_context=CONTEXT,
    )
    checks.equal(
        "kmsfs opens what the SDK re-encrypted",
        kmsfs.ask("unwrap", wrapped=wrapped(sdk.re_encrypt(request).body)).get("key"),
        key,
    )
    made = generate()
    checks.equal(
        "kmsfs rejects the SDK's key for another file",
        kmsfs.ask("unwrap", file=OTHER_FILE, wrapped=wrapped(made)).get("error"),
        "Rejected",
    )
    other = {**CONTEXT, "kmsfs:file": OTHER_FILE}
    checks.refused(
        "the SDK is refused for another file",
        "InvalidParameter",
        lambda: decrypt(made.ciphertext_blob, other),
    )
    request = models.DescribeKeyRequest(key_id=server.alias)
    checks.equal("an alias", sdk.describe_key(request).body.key_metadata.key_id, server.key)
    request = models.GenerateDataKeyRequest(key_id=server.key, dry_run="true")
    checks.refused("a dry run", "DryRunOperationError", lambda: sdk.generate_data_key(request))

    server.command("rotate")
    checks.equal(
        "the old version opens after a rotation",
        hexed(decrypt(made.ciphertext_blob).plaintext),
        hexed(made.plaintext),
    )
    server.command("throttle")
    checks.equal("kmsfs waits when throttled", "key" in kmsfs.ask("generate", bytes=32), True)
    server.command("disable")
    checks.refused("a disabled key", "Rejected.Disabled", generate)
    checks.equal("and kmsfs", kmsfs.ask("generate", bytes=32).get("error"), "Disabled")
    server.command("enable")

    sdk = client(secret="wrong")
    checks.refused("a wrong secret", "SignatureDoesNotMatch", generate)
    sdk = client(identity="nobody")
    checks.refused("an unknown access key", "InvalidAccessKeyId.NotFound", generate)
    sdk = client()
    server.command("clock/1000")
    checks.refused("a stale date", "InvalidTimeStamp.Expired", generate)
    server.command("clock/-1000")
    checks.refused("a date in the future", "InvalidTimeStamp.Expired", generate)
    server.command("clock/0")

    generate()
    checks.equal("a replayed nonce", resend(lambda request: None), "SignatureNonceUsed")

    def alter_query(request):
        request.url = request.url.replace("NumberOfBytes=32", "NumberOfBytes=16")

    checks.equal("an altered query", resend(alter_query), "SignatureDoesNotMatch")

    def alter_body(request):
        request.prepare_body(b"KeyId=other", None)

    checks.equal("an altered body", resend(alter_body), "InvalidContentSha256")

    def alter_nonce(request):
        request.headers["x-acs-signature-nonce"] = "another"

    checks.equal("an altered nonce", resend(alter_nonce), "SignatureDoesNotMatch")

    def unsign_host(request):
        signed = request.headers["Authorization"].replace(";host;", ";")
        request.headers["Authorization"] = signed

    checks.equal("an unsigned host", resend(unsign_host), "IncompleteSignature")
    kmsfs.stop()
    server.stop()
    checks.finish()


main(*sys.argv[1:])
