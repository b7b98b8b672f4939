"""A certificate authority in a directory, by the openssl command: certificates of any name and any time."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

_CONFIG = """\
[ca]
default_ca = here
[here]
database = {directory}/index
new_certs_dir = {directory}
serial = {directory}/serial
default_md = sha256
unique_subject = no
policy = any
copy_extensions = copy
x509_extensions = leaf
[any]
commonName = supplied
[leaf]
basicConstraints = CA:FALSE
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
[req]
distinguished_name = nothing
[nothing]
"""
_EC_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
# Python 3.13 verifies as RFC 5280 says (VERIFY_X509_STRICT): an authority names its key's usage.
_CA_USAGE = ("-addext", "keyUsage=critical,keyCertSign,cRLSign")


@dataclass(frozen=True)
class Pair:
    """A certificate and its key."""

    certificate: Path
    key: Path

    def replace(self, other: Pair) -> None:
        """Rotate to another pair, as a tool does that writes one file after the other."""
        self.certificate.write_bytes(other.certificate.read_bytes())
        self.key.write_bytes(other.key.read_bytes())


def _openssl(*arguments: str | Path) -> None:
    done = subprocess.run(["openssl", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


class Authority:
    """Signs what it is told to.

    Attributes:
        certificate: Its own, PEM.
    """

    def __init__(self, directory: Path, name: str = "authority") -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self.certificate = directory / "authority.pem"
        self._key = directory / "authority.key"
        (directory / "index").touch()
        (directory / "serial").write_text("01")
        (directory / "config").write_text(_CONFIG.format(directory=directory))
        files = ("-keyout", self._key, "-out", self.certificate)
        _openssl("req", "-x509", *_EC_KEY, *files, "-subj", f"/CN={name}", "-days", "2", *_CA_USAGE)

    def issue(self, name: str, sans: str = "DNS:localhost,IP:127.0.0.1", *, expired: bool = False) -> Pair:
        """Make a pair; one that has expired was good for a day of 2020."""
        pair = Pair(self._directory / f"{name}.pem", self._directory / f"{name}.key")
        request = self._directory / f"{name}.csr"
        extension = ("-addext", f"subjectAltName={sans}")
        _openssl("req", "-new", *_EC_KEY, "-keyout", pair.key, "-out", request, "-subj", f"/CN={name}", *extension)
        times = ("-startdate", "20200101000000Z", "-enddate", "20200102000000Z") if expired else ("-days", "2")
        signer = ("-cert", self.certificate, "-keyfile", self._key, "-config", self._directory / "config")
        _openssl("ca", "-batch", "-notext", *signer, *times, "-in", request, "-out", pair.certificate)
        return pair
