"""Certificates for tests and for `bench`, signed by themselves or by each other."""

from __future__ import annotations

import datetime as dt
import ipaddress
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec


def certificate(
    directory: Path, stem: str = "cert", *names: str, by: tuple[Path, Path] | None = None, hours: float = 24
) -> tuple[Path, Path]:
    """Write `stem`.pem and `stem`.key. The certificate is for loopback and `names`, and
    is valid for some `hours`. Return both paths.

    by: the certificate and key of an authority. None means that the certificate is an
    authority itself.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    names = names or ("mail.example.org",)
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, names[0])])
    loopback = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    now, hour = dt.datetime.now(dt.UTC), dt.timedelta(hours=1)
    issuer, signing = subject, key
    if by is not None:
        issuer = x509.load_pem_x509_certificate(by[0].read_bytes()).subject
        loaded = serialization.load_pem_private_key(by[1].read_bytes(), None)
        assert isinstance(loaded, ec.EllipticCurvePrivateKey)
        signing = loaded
    made = (
        x509.CertificateBuilder(issuer, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - hour)
        .not_valid_after(now + hours * hour)
        .add_extension(x509.SubjectAlternativeName([*map(x509.DNSName, names), loopback]), critical=False)
        .add_extension(x509.BasicConstraints(ca=by is None, path_length=None), critical=True)
        .sign(signing, hashes.SHA256())
    )
    directory.mkdir(parents=True, exist_ok=True)
    cert, secret = directory / f"{stem}.pem", directory / f"{stem}.key"
    cert.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    secret.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return cert, secret
