"""Azure's client for Key Vault against the test server and kmsfs.

azure_keys.py SERVER BRIDGE
"""

import hashlib
import os
import sys
import time

import requests
from azure.core.credentials import AccessToken
from azure.core.exceptions import HttpResponseError
from azure.keyvault.keys import KeyClient
from azure.keyvault.keys.crypto import CryptographyClient, KeyWrapAlgorithm

from peers import OTHER_FILE, Checks, Kmsfs, Server


class Login:
    """Client credentials, at the test server."""

    def __init__(self, server, secret):
        self.server, self.secret = server, secret
        self.scopes = []

    def get_token(self, *scopes, **_):
        self.scopes.extend(scopes)
        answer = requests.post(
            f"http://{self.server.http}/{self.server.tenant}/oauth2/v2.0/token",
            data={
                "grant_type": "client_credentials",
                "client_id": self.server.client,
                "client_secret": self.secret,
                "scope": scopes[0],
            },
        ).json()
        return AccessToken(answer["access_token"], int(time.time()) + answer["expires_in"])


def code(call):
    """The code of a refusal."""
    try:
        return f"no error, but {call()!r}"
    except HttpResponseError as error:
        inner = error.error and error.error.innererror
        return (inner or {}).get("code") or error.error.code


def main(server_program, bridge_program):
    server = Server(server_program)
    checks = Checks()
    authority = f"{server.fixtures}/ca.pem"
    login = Login(server, server.secret)
    options = {
        "credential": login,
        "connection_verify": authority,
        # It would want a domain of Azure's.
        "verify_challenge_resource": False,
    }
    keys = KeyClient(f"https://{server.https}", **options)
    environment = {
        "AZURE_AUTHORITY_HOST": f"http://{server.http}",
        "AZURE_CLIENT_ID": server.client,
        "AZURE_CLIENT_SECRET": server.secret,
    }

    def bind(key, aad):
        salt = os.urandom(16)
        return key + salt + hashlib.sha256(salt + aad).digest()

    def unbind(payload, aad):
        key, salt, digest = payload[:-48], payload[-48:-32], payload[-32:]
        return key if hashlib.sha256(salt + aad).digest() == digest else b"of another file"

    for kind, algorithm in (
        ("rsa", KeyWrapAlgorithm.rsa_oaep_256),
        ("aes", KeyWrapAlgorithm.aes_256),
    ):
        server.command(kind)
        name = algorithm.value
        uri = (
            f"azurekms://{server.https}/{server.key}"
            f"?ca={authority}&deadline=5&verify=0&algorithm={name}"
        )
        kmsfs = Kmsfs(bridge_program, uri, environment)
        aad = bytes.fromhex(kmsfs.ask("aad")["aad"])

        def current():
            return kmsfs.ask("generate", bytes=32)["wrapped"]["key_version"]

        def sdk(version=None):
            place = f"https://{server.https}/keys/{server.key}/{version or current()}"
            return CryptographyClient(place, **options)

        # From what it can read of an AES key the client makes one of its own.
        if kind == "aes":
            server.command("hide")

        def wrapped(answer):
            return {
                "key_uri": f"azurekms://{server.https}/{server.key}",
                "key_version": answer.key_id.rsplit("/", 1)[1],
                "algorithm": name,
                "ciphertext": answer.encrypted_key.hex(),
            }

        def unwrap(answer):
            ours = answer["wrapped"]
            crypto = sdk(ours["key_version"])
            payload = crypto.unwrap_key(algorithm, bytes.fromhex(ours["ciphertext"])).key
            return unbind(payload, aad).hex()

        for size in (16, 24, 32):
            key = os.urandom(size)
            made = sdk().wrap_key(algorithm, bind(key, aad))
            checks.equal(
                f"{name}: kmsfs opens the client's {size} bytes",
                kmsfs.ask("unwrap", wrapped=wrapped(made)).get("key"),
                key.hex(),
            )
            own = kmsfs.ask("generate", bytes=size)
            checks.equal(f"{name}: the client opens kmsfs's {size} bytes", unwrap(own), own["key"])
        key = "42" * 32
        own = kmsfs.ask("wrap", key=key)
        checks.equal(f"{name}: the client opens what kmsfs wrapped", unwrap(own), key)
        checks.equal(
            f"{name}: kmsfs rejects the client's key for another file",
            kmsfs.ask("unwrap", file=OTHER_FILE, wrapped=wrapped(made)).get("error"),
            "Rejected",
        )
        other = sdk().wrap_key(algorithm, bytes(32))
        checks.equal(
            f"{name}: and one that is bound to none",
            kmsfs.ask("unwrap", wrapped=wrapped(other)).get("error"),
            "Rejected",
        )
        checks.equal(
            f"{name}: the client is refused what is no wrapped key",
            code(lambda: sdk().unwrap_key(algorithm, bytes(256))),
            "BadParameter",
        )

        server.command("rotate")
        checks.equal(f"{name}: the client opens the old version", unwrap(own), key)
        checks.equal(
            f"{name}: and kmsfs", kmsfs.ask("unwrap", wrapped=own["wrapped"]).get("key"), key
        )
        server.command("show")
        checks.equal(
            f"{name}: kmsfs wraps with the new one",
            current(),
            keys.get_key(server.key).properties.version,
        )
        server.command("throttle")
        checks.equal(
            f"{name}: kmsfs waits when throttled", "key" in kmsfs.ask("generate", bytes=32), True
        )
        if kind == "aes":
            server.command("hide")
        server.command("disable")
        checks.equal(
            f"{name}: the client cannot unwrap with a disabled key",
            code(lambda: unwrap(own)),
            "KeyDisabled",
        )
        checks.equal(
            f"{name}: kmsfs does not wrap with it",
            kmsfs.ask("generate", bytes=32).get("error"),
            "Disabled",
        )
        server.command("enable")
        server.command("deny")
        checks.equal(
            f"{name}: without permission", code(lambda: keys.get_key(server.key)), "ForbiddenByPolicy"
        )
        checks.equal(f"{name}: and kmsfs", kmsfs.ask("generate", bytes=32).get("error"), "Denied")
        server.command("allow")
        server.command("end-tokens")
        checks.equal(
            f"{name}: kmsfs gets another token", "key" in kmsfs.ask("generate", bytes=32), True
        )
        kmsfs.stop()
        # The client does not replace a token that was refused.
        keys = KeyClient(f"https://{server.https}", **options)

    checks.equal("what tokens are for", set(login.scopes), {"https://localhost/.default"})
    checks.equal("a key that never was", code(lambda: keys.get_key("never")), "KeyNotFound")
    server.stop()
    checks.finish()


main(*sys.argv[1:])
