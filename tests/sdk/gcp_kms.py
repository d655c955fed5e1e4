"""Google's client for Cloud KMS against the test server and kmsfs.

gcp_kms.py SERVER BRIDGE
"""

import json
import os
import sys
import tempfile

import requests
from google.auth.transport.requests import Request
from google.cloud import kms_v1
from google.cloud.kms_v1.services.key_management_service.transports import (
    KeyManagementServiceRestTransport,
)
from google.oauth2 import credentials as user
from google.oauth2 import service_account

from peers import OTHER_FILE, Checks, Kmsfs, Server

SCOPES = ["https://www.googleapis.com/auth/cloudkms"]


def crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def main(server_program, bridge_program):
    server = Server(server_program)
    checks = Checks()

    def client(credentials):
        transport = KeyManagementServiceRestTransport(
            host=server.http, credentials=credentials, url_scheme="http"
        )
        return kms_v1.KeyManagementServiceClient(transport=transport)

    account = service_account.Credentials.from_service_account_info(
        server.service_account, scopes=SCOPES
    )
    sdk = client(account)
    with tempfile.NamedTemporaryFile("w", delete=False) as file:
        json.dump(server.service_account, file)
    uri = f"gcpkms://{server.key}?endpoint=http://{server.http}&deadline=5"
    kmsfs = Kmsfs(bridge_program, uri, {"GOOGLE_APPLICATION_CREDENTIALS": file.name})
    aad = bytes.fromhex(kmsfs.ask("aad")["aad"])

    def encrypt(key, context=aad, **fields):
        request = {
            "name": server.key,
            "plaintext": key,
            "additional_authenticated_data": context,
            "plaintext_crc32c": crc32c(key),
            "additional_authenticated_data_crc32c": crc32c(context),
            **fields,
        }
        return sdk.encrypt(request=request)

    def decrypt(ciphertext, context=aad, **fields):
        request = {
            "name": server.key,
            "ciphertext": ciphertext,
            "additional_authenticated_data": context,
            "ciphertext_crc32c": crc32c(ciphertext),
            "additional_authenticated_data_crc32c": crc32c(context),
            **fields,
        }
        return sdk.decrypt(request=request)

    def wrapped(answer):
        name, version = answer.name.split("/cryptoKeyVersions/")
        return {
            "key_uri": f"gcpkms://{name}",
            "key_version": version,
            "ciphertext": answer.ciphertext.hex(),
        }

    def ciphertext(answer):
        return bytes.fromhex(answer["wrapped"]["ciphertext"])

    for size in (16, 24, 32):
        key = os.urandom(size)
        made = encrypt(key)
        checks.equal(
            f"the checksums of the client's {size} bytes",
            (
                made.verified_plaintext_crc32c,
                made.verified_additional_authenticated_data_crc32c,
                made.ciphertext_crc32c,
            ),
            (True, True, crc32c(made.ciphertext)),
        )
        checks.equal(
            f"kmsfs opens the client's {size} bytes",
            kmsfs.ask("unwrap", wrapped=wrapped(made)).get("key"),
            key.hex(),
        )
        own = kmsfs.ask("generate", bytes=size)
        opened = decrypt(ciphertext(own))
        checks.equal(
            f"the client opens kmsfs's {size} bytes",
            (opened.plaintext.hex(), opened.plaintext_crc32c),
            (own["key"], crc32c(bytes.fromhex(own["key"]))),
        )
        checks.equal("with the primary version", opened.used_primary, True)
    key = "42" * 32
    checks.equal(
        "the client opens what kmsfs wrapped",
        decrypt(ciphertext(kmsfs.ask("wrap", key=key))).plaintext.hex(),
        key,
    )
    made = encrypt(bytes(32))
    checks.equal(
        "kmsfs rejects the client's key for another file",
        kmsfs.ask("unwrap", file=OTHER_FILE, wrapped=wrapped(made)).get("error"),
        "Rejected",
    )
    checks.refused(
        "the client is refused for another file", 400, lambda: decrypt(made.ciphertext, b"other")
    )
    checks.refused(
        "a wrong checksum of the plaintext", 400, lambda: encrypt(bytes(32), plaintext_crc32c=1)
    )
    checks.refused(
        "a wrong checksum of the ciphertext",
        400,
        lambda: decrypt(made.ciphertext, ciphertext_crc32c=1),
    )
    primary = sdk.get_crypto_key(name=server.key).primary
    checks.equal("the primary version", primary.name, f"{server.key}/cryptoKeyVersions/1")

    server.command("rotate")
    checks.equal("the client after a rotation", decrypt(made.ciphertext).used_primary, False)
    checks.equal(
        "and kmsfs", kmsfs.ask("unwrap", wrapped=wrapped(made)).get("key"), bytes(32).hex()
    )
    checks.equal(
        "the new version", kmsfs.ask("generate", bytes=32)["wrapped"]["key_version"], "2"
    )
    server.command("throttle")
    checks.equal("kmsfs waits when throttled", "key" in kmsfs.ask("generate", bytes=32), True)
    server.command("damage")
    checks.equal("kmsfs sees damage", "key" in kmsfs.ask("generate", bytes=32), True)
    server.command("disable")
    checks.refused("a disabled key", 400, lambda: encrypt(bytes(32)))
    checks.equal("and kmsfs", kmsfs.ask("generate", bytes=32).get("error"), "Disabled")
    server.command("enable")
    server.command("deny")
    checks.refused("no permission", 403, lambda: encrypt(bytes(32)))
    checks.equal("and kmsfs", kmsfs.ask("generate", bytes=32).get("error"), "Denied")
    server.command("allow")
    checks.refused("a key that never was", 404, lambda: encrypt(bytes(32), name=server.key + "2"))

    # Made from the file by the client, they would go to Google.
    fields = {name: text for name, text in server.authorized_user.items() if name != "type"}
    sdk = client(user.Credentials(None, scopes=SCOPES, **fields))
    checks.equal("a refresh token", bool(encrypt(bytes(32)).ciphertext), True)
    wrong = {"Authorization": "Bearer no token"}
    answer = requests.post(f"http://{server.http}/v1/{server.key}:encrypt", headers=wrong)
    checks.equal("a wrong token", answer.status_code, 401)

    def login(**fields):
        info = {**server.service_account, **fields}
        service_account.Credentials.from_service_account_info(info, scopes=SCOPES).refresh(
            Request()
        )

    def refused(name, part, call):
        try:
            result = f"no error, but {call()!r}"
        except Exception as error:
            result = part if part in str(error) else repr(error)
        checks.equal(name, result, part)

    refused("another account", "account not found", lambda: login(client_email="a@b"))
    refused("another key id", "Invalid header", lambda: login(private_key_id="other"))
    kmsfs.stop()
    server.stop()
    os.unlink(file.name)
    checks.finish()


main(*sys.argv[1:])
