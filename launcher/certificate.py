"""The self-signed certificate that proves to clients that this launcher started a store."""

from __future__ import annotations

import ipaddress
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from launcher.datadir import write_private
from launcher.ports import LOOPBACK

# Valid whatever the machine's clock shows.
_BEGINS, _ENDS = datetime(2020, 1, 1, tzinfo=UTC), datetime(2120, 1, 1, tzinfo=UTC)


def ensure_certificate(folder: Path, name: str) -> tuple[Path, Path]:
    """Returns the files of certificate and key for a server on loopback; creates missing ones.

    Raises OSError.
    """
    certificate, key = folder / f"{name}.crt", folder / f"{name}.key"
    if not (certificate.exists() and key.exists()):
        private = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, f"daarion {name}")])
        signed = (
            x509.CertificateBuilder(
                subject, subject, private.public_key(), x509.random_serial_number(), _BEGINS, _ENDS
            )
            .add_extension(
                x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(LOOPBACK))]),
                critical=False,
            )
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .sign(private, hashes.SHA256())
        )
        write_private(
            key, private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
        )
        write_private(certificate, signed.public_bytes(Encoding.PEM).decode())
    return certificate, key
