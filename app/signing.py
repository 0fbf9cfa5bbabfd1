"""The signing key: ECDSA on P-256 with SHA-256, which `openssl`, `cosign` and `model_signing` all know.

    keys/signing.pem            PKCS #8, mode 0600; only the sign process opens it
    keys/public/<key id>.pem    SubjectPublicKeyInfo; older keys stay, so that older results can still be verified

A key id is the SHA-256 of the key's DER SubjectPublicKeyInfo, in hex.
"""

from __future__ import annotations

import base64
import hashlib
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

from cryptography import exceptions
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from app.errors import InvalidSignature, Unavailable

PrivateKey = ec.EllipticCurvePrivateKey
PublicKey = ec.EllipticCurvePublicKey
ALGORITHM = ec.ECDSA(hashes.SHA256())


def key_id(public: PublicKey) -> str:
    """64 hex digits."""
    der = public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(der).hexdigest()


def public_pem(public: PublicKey) -> bytes:
    return public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def parse_public(pem: bytes, where: str = "the key") -> PublicKey:
    """Raises:
    InvalidSignature: unless it is a PEM public key on P-256.
    """
    try:
        key = serialization.load_pem_public_key(pem)
    except (ValueError, exceptions.UnsupportedAlgorithm):
        raise InvalidSignature(f"{where} is not a public key in PEM form") from None
    if not isinstance(key, PublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise InvalidSignature(f"{where} is not an ECDSA key on the curve P-256")
    return key


def jwks(keys: Iterable[PublicKey]) -> dict:
    """The keys as a JSON Web Key Set (RFC 7517)."""

    def coordinate(n: int) -> str:
        return base64.urlsafe_b64encode(n.to_bytes(32, "big")).rstrip(b"=").decode()

    def jwk(key: PublicKey) -> dict:
        point = key.public_numbers()
        return {"kty": "EC", "crv": "P-256", "alg": "ES256", "use": "sig", "kid": key_id(key), "x": coordinate(point.x), "y": coordinate(point.y)}

    return {"keys": [jwk(k) for k in keys]}


def public_keys(folder: Path) -> dict[str, PublicKey]:
    """Key id -> key, of every `folder/public/*.pem`, the newest first; the file's name is not trusted."""
    newest = sorted((folder / "public").glob("*.pem"), key=lambda p: p.stat().st_mtime_ns, reverse=True)
    found = [parse_public(p.read_bytes(), str(p)) for p in newest]
    return {key_id(k): k for k in found}


def sign_detached(key: PrivateKey, data: bytes) -> bytes:
    """A DER signature, as `openssl dgst -sha256 -verify` reads it."""
    return key.sign(data, ALGORITHM)


def holds(public: PublicKey, signature: bytes, data: bytes) -> bool:
    """Whether `signature` (DER) is this key's over `data`."""
    try:
        public.verify(signature, data, ALGORITHM)
    except exceptions.InvalidSignature:
        return False
    return True


def open_key(folder: Path) -> PrivateKey:
    """The signing key; made at the very first start, and checked by a signature of its own before it is used.

    A key that is gone is not replaced in silence: users have pinned it. `app.rotation.rotate` replaces it.

    Raises:
        Unavailable: it is gone, damaged, or others may read it.
    """
    path = folder / "signing.pem"
    had_one = any((folder / "public").glob("*.pem"))  # looked for first: a racing first start writes the private key first
    if not path.exists():
        if had_one:
            raise Unavailable(f"{path} is gone, and its public key is not: put it back, or make a new one with `modelpress keys --rotate`")
        write_private(path, ec.generate_private_key(ec.SECP256R1()), folder, first=True)
    key = read_private(path)
    public = key.public_key()
    if not holds(public, sign_detached(key, b"self-check"), b"self-check"):
        raise Unavailable(f"{path} makes signatures that do not hold")
    known = folder / "public" / f"{key_id(public)}.pem"
    if not known.exists():
        write(known, public_pem(public), 0o644)
    return key


def read_private(path: Path) -> PrivateKey:
    """Raises:
    Unavailable: it is damaged, or others may read it.
    """
    if path.stat().st_mode & 0o077:
        raise Unavailable(f"{path} can be read by others; set its mode to 0600")
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), None)
        parse_public(public_pem(key.public_key()))
    except (ValueError, TypeError, AttributeError, InvalidSignature, exceptions.UnsupportedAlgorithm):
        raise Unavailable(f"{path} is not a private key on the curve P-256") from None
    return key


def write_private(path: Path, key: PrivateKey, folder: Path, first: bool = False) -> PrivateKey:
    """Write a private key, and its public half into `folder`. `first`: whoever came first has written it, and that stays."""
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    write(path, pem, 0o600, exclusive=first)
    if not first:
        write(folder / "public" / f"{key_id(key.public_key())}.pem", public_pem(key.public_key()), 0o644)
    return key


def write(path: Path, data: bytes, mode: int, exclusive: bool = False) -> None:
    """All of it or nothing. `exclusive`: whoever came first has written it, and that stays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent)  # 0600
    try:
        with os.fdopen(descriptor, "wb") as f:
            f.write(data)
            os.fchmod(f.fileno(), mode)
            f.flush()
            os.fsync(f.fileno())
        if exclusive:
            try:
                os.link(temporary, path)
            except FileExistsError:
                pass
        else:
            os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)
