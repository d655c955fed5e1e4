"""Alibaba Cloud's SDK for KMS instances against the test server and kmsfs.

alibaba_instance.py SERVER BRIDGE
"""

import sys

import requests
from openapi.models import Config
from openapi_util.models import RuntimeOptions
from sdk import models
from sdk.client import Client

from peers import FILE, OTHER_FILE, VOLUME, Checks, Kmsfs, Server

AAD = f"kmsfs:file={FILE}&kmsfs:volume={VOLUME}".encode()
ONCE = RuntimeOptions(autoretry=False)

sent = []
really_send = requests.Session.send


def remember(self, request, **options):
    sent.append((request.copy(), options))
    return really_send(self, request, **options)


requests.Session.send = remember


def main(server_program, bridge_program):
    server = Server(server_program)
    checks = Checks()
    authority = f"{server.fixtures}/ca.pem"
    with open(f"{server.fixtures}/client-key-password") as file:
        password = file.read().strip()

    def client(name, protocol="https"):
        return Client(
            Config(
                protocol=protocol,
                endpoint=server.https if protocol == "https" else server.http,
                client_key_file=f"{server.fixtures}/{name}",
                password=password,
                ca_file_path=authority,
            )
        )

    def bridge(name):
        return Kmsfs(
            bridge_program,
            f"alibabakms://{server.https}/{server.key}?deadline=5&ca={authority}"
            f"&client-key={server.fixtures}/{name}"
            f"&client-key-password-file={server.fixtures}/client-key-password",
        )

    def wrapped(body, advance):
        return {
            "key_uri": f"alibabakms://{server.https}/{body.key_id}?wire=instance",
            "key_version": body.key_version_id if advance else "",
            "algorithm": "" if advance else body.algorithm,
            "iv": "" if advance else body.iv.hex(),
            "ciphertext": body.ciphertext_blob.hex(),
        }

    def advance_generate(size=32):
        request = models.AdvanceGenerateDataKeyRequest(
            key_id=server.key, number_of_bytes=size, aad=AAD
        )
        return sdk.advance_generate_data_key_with_options(request, ONCE)

    def generate(size=32):
        request = models.GenerateDataKeyRequest(
            key_id=server.key, number_of_bytes=size, aad=AAD
        )
        return sdk.generate_data_key_with_options(request, ONCE)

    def advance_decrypt(own, aad=AAD):
        request = models.AdvanceDecryptRequest(
            ciphertext_blob=bytes.fromhex(own["wrapped"]["ciphertext"]), aad=aad
        )
        return sdk.advance_decrypt_with_options(request, ONCE)

    def decrypt(own, aad=AAD):
        request = models.DecryptRequest(
            key_id=server.key,
            ciphertext_blob=bytes.fromhex(own["wrapped"]["ciphertext"]),
            iv=bytes.fromhex(own["wrapped"]["iv"]),
            algorithm=own["wrapped"]["algorithm"],
            aad=aad,
        )
        return sdk.decrypt_with_options(request, ONCE)

    for name in ("client-key-legacy.json", "client-key-pbes2.json"):
        sdk = client(name)
        kmsfs = bridge(name)
        checks.equal("the associated data", kmsfs.ask("aad").get("aad"), AAD.hex())
        for size in (16, 24, 32):
            made = advance_generate(size)
            checks.equal(f"{name}: the SDK's {size} bytes", len(made.plaintext), size)
            checks.equal(
                f"{name}: kmsfs opens the SDK's {size} bytes",
                kmsfs.ask("unwrap", wrapped=wrapped(made, True)).get("key"),
                made.plaintext.hex(),
            )
            own = kmsfs.ask("generate", bytes=size)
            checks.equal(
                f"{name}: the SDK opens kmsfs's {size} bytes",
                advance_decrypt(own).plaintext.hex(),
                own["key"],
            )
        made = generate()
        checks.equal(
            f"{name}: kmsfs opens the SDK's plain data key",
            kmsfs.ask("unwrap", wrapped=wrapped(made, False)).get("key"),
            made.plaintext.hex(),
        )
        key = "42" * 32
        own = kmsfs.ask("wrap", key=key)
        checks.equal(
            f"{name}: the SDK opens what kmsfs encrypted", advance_decrypt(own).plaintext.hex(), key
        )
        request = models.AdvanceEncryptRequest(
            key_id=server.alias, plaintext=bytes.fromhex(key), aad=AAD
        )
        made = sdk.advance_encrypt_with_options(request, ONCE)
        checks.equal(
            f"{name}: kmsfs opens what the SDK encrypted",
            kmsfs.ask("unwrap", wrapped=wrapped(made, True)).get("key"),
            key,
        )
        checks.equal(
            f"{name}: kmsfs rejects it for another file",
            kmsfs.ask("unwrap", file=OTHER_FILE, wrapped=wrapped(made, True)).get("error"),
            "Rejected",
        )
        checks.refused(
            f"{name}: the SDK is refused for another file",
            "InvalidParameter",
            lambda: advance_decrypt(own, b"another"),
        )
        kmsfs.stop()

    server.command("hardware")
    kmsfs = bridge("client-key-legacy.json")
    checks.refused("Advance on a hardware instance", "UnsupportedOperation", advance_generate)
    own = kmsfs.ask("generate", bytes=32)
    checks.equal("kmsfs keeps IV and algorithm", len(own["wrapped"]["iv"]), 24)
    checks.equal("the SDK opens it", decrypt(own).plaintext.hex(), own["key"])
    own = kmsfs.ask("wrap", key=key)
    checks.equal("and what kmsfs encrypted", decrypt(own).plaintext.hex(), key)
    made = generate()
    checks.equal(
        "and the reverse",
        kmsfs.ask("unwrap", wrapped=wrapped(made, False)).get("key"),
        made.plaintext.hex(),
    )
    kmsfs.stop()

    server.command("software")
    plain = client("client-key-legacy.json", "http")
    sdk = plain
    checks.equal("without TLS", len(advance_generate().plaintext), 32)
    server.command("clock/1000")
    checks.refused("a stale date", "RequestTimeTooSkewed", generate)
    server.command("clock/0")
    generate()

    def resend(change):
        request, options = sent[-1]
        request = request.copy()
        change(request)
        return really_send(requests.Session(), request, **options)

    def alter_body(request):
        request.body = request.body[:-1] + b"x"

    def alter_name(request):
        request.headers["x-kms-apiname"] = "Decrypt"

    def alter_signature(request):
        request.headers["authorization"] = request.headers["authorization"][:-8] + "AAAAAA=="

    def alter_identity(request):
        request.headers["x-kms-acccesskeyid"] = "KAAP.someone-else"

    def with_token(request):
        bearer = request.headers["authorization"]
        request.headers["authorization"] = bearer.replace("Bearer", "TOKEN")

    checks.equal("the documented TOKEN", resend(with_token).status_code, 200)
    for name, change, code in (
        ("an altered body", alter_body, b"SignatureNotMatch"),
        ("an altered operation", alter_name, b"SignatureNotMatch"),
        ("an altered signature", alter_signature, b"SignatureNotMatch"),
        ("another identity", alter_identity, b"Unauthorized"),
    ):
        answer = resend(change)
        checks.equal(name, (answer.status_code, code in answer.content), (401, True))
    server.stop()
    checks.finish()


main(*sys.argv[1:])
