"""A certificate authority of one's own, for servers that no public one knows."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from servers.access import write_private

AUTHORITY_DAYS, SERVER_DAYS = 3650, 397
"""How long certificates are valid; browsers accept no longer ones of servers."""

_NAME = re.compile(r"(\*\.)?[A-Za-z0-9]([A-Za-z0-9.-]{0,252})")

_EARLIER = timedelta(minutes=5)
"""Certificates are valid from so long ago, for machines whose clock is late."""


class Authority:
    """Signs certificates of servers with a key in a folder.

    Parameters
    ----------
    folder : Path
        Holds ``ca.pem`` and ``ca.key``; where they are not, they are made.

    Raises
    ------
    OSError, ValueError
        When they cannot be written, read or used.
    """

    def __init__(self, folder: Path) -> None:
        self.file, key_file = folder / "ca.pem", folder / "ca.key"
        if self.file.exists():
            self._certificate = read_certificate(self.file)
            key = serialization.load_pem_private_key(key_file.read_bytes(), None)
            if not isinstance(key, ec.EllipticCurvePrivateKey):
                raise ValueError(f"{key_file}: no key that `fedhlm keys` has made")
            self._key = key
            return
        self._key = ec.generate_private_key(ec.SECP256R1())
        name = _name("FedHLM authority")
        self._certificate = (
            _built(name, name, self._key.public_key(), datetime.now(UTC), AUTHORITY_DAYS)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(signs=True), critical=True)
            .sign(self._key, hashes.SHA256())
        )
        write_private(key_file, pem(self._key))
        self.file.write_bytes(self._certificate.public_bytes(serialization.Encoding.PEM))

    def issue(
        self, certificate: Path, hosts: Collection[str], *, since: datetime | None = None
    ) -> None:
        """Write the certificate of a server, and beside it (``.key``) its key.

        Parameters
        ----------
        certificate : Path
            PEM file.
        hosts : collection of str
            Names and IP addresses that it is asked by, at least one.
        since : datetime, optional
            From when it is valid; now by default.

        Raises
        ------
        ValueError
            When one of them is no name.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        names = x509.SubjectAlternativeName([_host(host) for host in hosts])
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        built = (
            _built(
                _name(next(iter(hosts))), self._certificate.subject, key.public_key(),
                since or datetime.now(UTC), SERVER_DAYS,
            )
            .add_extension(names, critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs=False), critical=True)
            .add_extension(
                x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False
            )
            .add_extension(issuer, critical=False)
            .sign(self._key, hashes.SHA256())
        )  # fmt: skip
        write_private(certificate.with_suffix(".key"), pem(key))
        certificate.write_bytes(built.public_bytes(serialization.Encoding.PEM))


def read_certificate(file: Path) -> x509.Certificate:
    """The first certificate of a PEM file.

    Raises
    ------
    OSError, ValueError
        When there is none.
    """
    return x509.load_pem_x509_certificate(file.read_bytes())


def pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """A private key in PEM, without a password."""
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def node_keys() -> tuple[bytes, bytes]:
    """A key pair with which a SuperNode shows who it is, private and public, as OpenSSH has it."""
    key = ec.generate_private_key(ec.SECP384R1())
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.OpenSSH,
        serialization.NoEncryption(),
    )
    public = key.public_key().public_bytes(
        serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    )
    return private, public + b"\n"


def _built(
    subject: x509.Name,
    issuer: x509.Name,
    public_key: ec.EllipticCurvePublicKey,
    since: datetime,
    days: int,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(since - _EARLIER)
        .not_valid_after(since + timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
    )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text[:64])])


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        if not _NAME.fullmatch(host):
            raise ValueError(
                f"{host!r} is no name of a server: allowed are IP addresses, and names of letters, "
                "digits, dots and hyphens"
            ) from None
        return x509.DNSName(host)


def _usage(signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs,
        crl_sign=signs,
        encipher_only=False,
        decipher_only=False,
    )
