"""Certificates and keys for a federation that is tried out: a CA, the server's certificate, a key per site.

A consortium uses the certificates of its own authority; these are for a test federation.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

from medfedpure.core.errors import MissingExtraError
from medfedpure.core.storage import write_bytes

try:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec, rsa
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
except ImportError as _error:
    raise MissingExtraError(
        "certificates are made with the package 'cryptography': pip install 'medfedpure[federated]'"
    ) from _error


def write_certificates(folder: Path, servers: Mapping[str, tuple[str, ...]], days: int = 365) -> None:
    """Write ca.crt and ca.key, and of each server NAME.pem and NAME.key.

    Args:
        folder: made where it is missing; private keys in it are readable by their owner alone.
        servers: by name, the hosts and addresses under which it is reached, at least one.
        days: how long the certificates are valid.
    """
    folder.mkdir(parents=True, exist_ok=True)
    ca_key = _rsa()
    ca_name = _name("medfedpure test CA")
    now = datetime.now(UTC)
    ca = (
        _certificate(ca_name, ca_name, ca_key.public_key(), now, days)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .sign(ca_key, hashes.SHA256())
    )
    write_bytes(folder / "ca.crt", ca.public_bytes(serialization.Encoding.PEM))
    _write_key(folder / "ca.key", ca_key, serialization.PrivateFormat.TraditionalOpenSSL)
    for name, hosts in servers.items():
        key = _rsa()
        # X.509 has no room for more of a name; what counts are the alternative names below.
        server = (
            _certificate(_name(hosts[0][:64]), ca_name, key.public_key(), now, days)
            .add_extension(x509.SubjectAlternativeName([_alternative(host) for host in hosts]), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False)
            .sign(ca_key, hashes.SHA256())
        )
        write_bytes(folder / f"{name}.pem", server.public_bytes(serialization.Encoding.PEM))
        _write_key(folder / f"{name}.key", key, serialization.PrivateFormat.TraditionalOpenSSL)


def _rsa() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=3072)


def write_node_key(path: Path) -> None:
    """Write an OpenSSH key on the curve P-384, which Flower's node authentication wants, and its `.pub`."""
    key = ec.generate_private_key(ec.SECP384R1())
    _write_key(path, key, serialization.PrivateFormat.OpenSSH)
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    write_bytes(path.with_name(path.name + ".pub"), public + b"\n")


def _write_key(
    path: Path, key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey, form: serialization.PrivateFormat
) -> None:
    content = key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())
    write_bytes(path, content, mode=0o600)


def _certificate(
    subject: x509.Name, issuer: x509.Name, key: rsa.RSAPublicKey, now: datetime, days: int
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_encipherment=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _alternative(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)
