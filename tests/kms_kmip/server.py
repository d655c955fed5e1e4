"""A PyKMIP server on loopback and its keys' owner, for the tests.

server.py DIRECTORY makes certificates in DIRECTORY, starts the server and prints
a line of JSON with its port. Then each line of JSON on standard input is something
to do, answered by one line. It ends when its input does.

The owner makes keys, activates, revokes and destroys them through the protocol.
What the protocol has no operation for (giving rights, bringing a revoked key
back) is done in the server's own database objects.
"""

import datetime
import ipaddress
import json
import logging
import os
import shutil
import socket
import sys
import threading
import time

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from kmip.core import enums
from kmip.pie import client, objects
from kmip.services.server.server import KmipServer

# Allows what docs/KMS.md says is needed, to whoever has a certificate. PyKMIP
# judges Encrypt and Decrypt by the right to Get.
POLICY = {
    "kmsfs": {
        "preset": {
            "SYMMETRIC_KEY": {
                "LOCATE": "ALLOW_ALL",
                "GET_ATTRIBUTES": "ALLOW_ALL",
                "GET": "ALLOW_ALL",
                "ACTIVATE": "ALLOW_OWNER",
                "REVOKE": "ALLOW_OWNER",
                "DESTROY": "ALLOW_OWNER",
            }
        }
    }
}


def name(text):
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def write(path, data):
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(data)


class Authority:
    """Issues certificates. ECDSA, since with RSA ones PyKMIP offers no way of
    encryption that is still in use."""

    def __init__(self, directory, stem):
        self.directory = directory
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = name(stem)
        self.write(stem, self.sign(self.name, self.key.public_key(), authority=True))

    def sign(self, subject, public, authority=False, usage=None, names=()):
        now = datetime.datetime.now(datetime.timezone.utc)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.name)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), True)
        )
        if usage:
            builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), False)
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), False)
        return builder.sign(self.key, hashes.SHA256())

    def write(self, stem, certificate, key=None):
        pem = serialization.Encoding.PEM
        write(f"{self.directory}/{stem}.pem", certificate.public_bytes(pem))
        if key:
            private = key.private_bytes(
                pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
            write(f"{self.directory}/{stem}-key.pem", private)

    def issue(self, stem, subject, usage, names=()):
        key = ec.generate_private_key(ec.SECP256R1())
        self.write(stem, self.sign(name(subject), key.public_key(), usage=usage, names=names), key)


class Owner:
    """Does what it is told to keys."""

    def __init__(self, directory, port, engine):
        self.engine = engine
        self.lock = threading.Lock()
        self.client = client.ProxyKmipClient(
            hostname="127.0.0.1",
            port=port,
            cert=f"{directory}/owner.pem",
            key=f"{directory}/owner-key.pem",
            ca=f"{directory}/ca.pem",
            ssl_version="PROTOCOL_TLSv1_2",
            config_file=os.devnull,
            kmip_version=enums.KMIPVersion.KMIP_1_4,
        )
        self.client.open()

    def make(self, name, active=True, decrypts=True):
        made = self.client.create(
            enums.CryptographicAlgorithm.AES,
            256,
            operation_policy_name="kmsfs",
            name=name,
        )
        if not decrypts:
            # The client always asks for both.
            self.change(made, cryptographic_usage_masks=[enums.CryptographicUsageMask.ENCRYPT])
        if active:
            self.client.activate(made)
        return made

    def activate(self, id):
        self.client.activate(id)

    def revoke(self, id, reason="CESSATION_OF_OPERATION"):
        self.client.revoke(enums.RevocationReasonCode[reason], id)

    def destroy(self, id):
        self.client.destroy(id)

    def state(self, id):
        attributes = self.client.get_attributes(id, ["State"])[1]
        return attributes[0].attribute_value.value.name

    def change(self, id, **values):
        with self.engine._lock, self.engine._data_store_session_factory() as session:
            key = session.query(objects.SymmetricKey).filter_by(unique_identifier=id).one()
            for attribute, value in values.items():
                setattr(key, attribute, value)
            session.commit()

    def set_state(self, id, state):
        self.change(id, state=enums.State[state])

    def set_allowed(self, id, allowed):
        self.change(id, operation_policy_name="kmsfs" if allowed else "default")

    def age(self, id, seconds):
        """Makes a key older: its dates have whole seconds."""
        with self.engine._lock, self.engine._data_store_session_factory() as session:
            key = session.query(objects.SymmetricKey).filter_by(unique_identifier=id).one()
            key.initial_date -= seconds
            session.commit()


def answer(owner, line):
    task = json.loads(line)
    action = getattr(owner, task.pop("do"))
    try:
        return {"result": action(**task)}
    except Exception as error:  # pylint: disable=broad-except
        return {"error": repr(error)}


def wait_for(connect):
    """The server listens a moment after it was started."""
    end = time.monotonic() + 30
    while True:
        try:
            return connect()
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.05)


def serve_owner(directory, port, server):
    """Obeys the tests until they end, and the server with them."""
    try:
        owner = wait_for(lambda: Owner(directory, port, server._engine))
        print(json.dumps({"port": port}), flush=True)
        for line in sys.stdin:
            print(json.dumps(answer(owner, line)), flush=True)
    finally:
        # The server has two processes of its own, and waits for its sessions.
        server.policy_monitor.terminate()
        server.manager.shutdown()
        shutil.rmtree(directory, ignore_errors=True)
        os._exit(0)


def main():
    directory = sys.argv[1]
    authority = Authority(directory, "ca")
    loopback = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    authority.issue("server", "server", ExtendedKeyUsageOID.SERVER_AUTH, loopback)
    for client_name in ("kmsfs", "owner"):
        authority.issue(client_name, client_name, ExtendedKeyUsageOID.CLIENT_AUTH)
    # Wrong in one way each.
    authority.issue("no-client", "no-client", ExtendedKeyUsageOID.SERVER_AUTH)
    Authority(directory, "other-ca").issue(
        "stranger", "kmsfs", ExtendedKeyUsageOID.CLIENT_AUTH
    )
    os.mkdir(f"{directory}/policies")
    with open(f"{directory}/policies/kmsfs.json", "w", encoding="utf-8") as file:
        json.dump(POLICY, file)

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = KmipServer(
        hostname="127.0.0.1",
        port=port,
        certificate_path=f"{directory}/server.pem",
        key_path=f"{directory}/server-key.pem",
        ca_path=f"{directory}/ca.pem",
        auth_suite="TLS1.2",
        config_path=None,
        log_path=f"{directory}/server.log",
        policy_path=f"{directory}/policies",
        enable_tls_client_auth=True,
        logging_level="CRITICAL",
        database_path=f"{directory}/keys.sqlite",
    )
    # Every message of the level below is written to a file.
    logging.getLogger("kmip").setLevel(logging.CRITICAL)
    server.start()
    server.policy_monitor.join(30)
    threading.Thread(
        target=serve_owner, args=(directory, port, server), daemon=True
    ).start()
    server.serve()


if __name__ == "__main__":
    main()
