"""Verification, offline: a downloaded folder, or a bundle against digests. Nothing in either is trusted before its signature holds.

`model.sig` decides: the folder's files must be exactly those that it names. It leaves git's own files (`.gitattributes`) to SHA256SUMS, which
must then be there. Where the other sidecars are there, they must hold as well: SHA256SUMS.sig over SHA256SUMS, SHA256SUMS and provenance.json over
the same files, and report.json must be the report that the provenance names.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import MappingProxyType

from app.errors import InvalidSignature, KeyRevoked, MalformedJson
from app.strict import parse_json
from app.signing import PublicKey, holds, key_id
from app.statement import BUNDLE, MODEL_PREDICATE, PAYLOAD_TYPE, PROVENANCE_PREDICATE, SIDECARS, STATEMENT, hint, of_git, pae, sha256sums

DIGEST = re.compile(r"[0-9a-f]{64}")
SIDE_FOLDER = ".modelpress"
"""Where a download puts the sidecars when the result has a file of its own that is called like one of them."""
MAX_SIDECAR = 256 << 20
NONE: Mapping[str, str] = MappingProxyType({})
CHUNK = 1 << 20


@dataclass(frozen=True)
class Verified:
    """What holds: `files` (path -> SHA-256) are covered by signatures of the key `key_id`; `checked` names the sidecars that were looked at."""

    key_id: str
    files: dict[str, str]
    checked: tuple[str, ...]


def verify_bundle(bundle: dict, files: Mapping[str, str], public_keys: Iterable[PublicKey], revoked: Mapping[str, str] = NONE) -> Verified:
    """Check a Sigstore bundle (`model.sig`, parsed) against path -> SHA-256 and a set of keys. It says nothing about git's own files.

    Args:
        revoked: key id -> since when and why. Nothing that such a key has signed holds, whether it is among the public keys or not.

    Raises:
        KeyRevoked: by name.
        InvalidSignature: with `differs`, `missing` and `extra` (paths) where the files are not those that were signed.
    """
    key, signed = _open_bundle(bundle, _good(bundle, public_keys, revoked))
    _compare(signed, files)
    return Verified(key_id(key), signed, ("model.sig",))


def verify_folder(
    folder: Path, public_keys: Iterable[PublicKey], progress: Callable[[int], None] = lambda n: None, revoked: Mapping[str, str] = NONE
) -> Verified:
    """Check a downloaded folder. `progress` is told the bytes hashed since the last call. `revoked`: see `verify_bundle`.

    Raises:
        InvalidSignature: naming the file. KeyRevoked.
    """
    side = folder / SIDE_FOLDER if (folder / SIDE_FOLDER / "model.sig").is_file() else folder
    sidecars = {name: _read(side / name) for name in SIDECARS if (side / name).is_file()}
    if "model.sig" not in sidecars:
        raise InvalidSignature(f"{folder} has no model.sig: nothing says what it should hold")
    bundle = _json(sidecars["model.sig"], "model.sig")
    keys = _good(bundle, public_keys, revoked)
    key, signed = _open_bundle(bundle, keys)
    if side == folder:
        sidecars = {name: data for name, data in sidecars.items() if name not in signed}
    passed = {side / name for name in sidecars}
    found = {p.relative_to(folder).as_posix(): _hash(p, progress) for p in _walk(folder) if p not in passed}
    _compare(signed, found)
    _check_sums(sidecars, found, keys)
    _check_provenance(sidecars, found, keys)
    return Verified(key_id(key), found, tuple(sorted(sidecars)))


def _good(bundle: object, public_keys: Iterable[PublicKey], revoked: Mapping[str, str]) -> list[PublicKey]:
    """The keys that were not revoked.

    Raises:
        KeyRevoked: the bundle names one that was.
    """
    keys = list(public_keys)
    try:
        named = bundle["verificationMaterial"]["publicKey"]["hint"]
    except (KeyError, TypeError):
        named = None  # said by `_open_bundle`
    for key in keys:
        if (ident := key_id(key)) in revoked and hint(key) == named:
            raise KeyRevoked(f"it was signed by key {ident}, which was revoked {revoked[ident]}. Nothing that this key has signed can be trusted")
    return [key for key in keys if key_id(key) not in revoked]


def _check_sums(sidecars: dict[str, bytes], found: dict[str, str], keys: list[PublicKey]) -> None:
    sums, signature = sidecars.get("SHA256SUMS"), sidecars.get("SHA256SUMS.sig")
    if sums is None and signature is None:
        uncovered = [p for p in found if of_git(p)]
        _expect(not uncovered, "SHA256SUMS", f"it is missing, and only it covers {', '.join(uncovered)}")
        return
    if sums is None or signature is None:
        raise InvalidSignature("SHA256SUMS and SHA256SUMS.sig belong together, and one is missing")
    if not any(holds(k, signature, sums) for k in keys):
        raise InvalidSignature("SHA256SUMS.sig is not a signature of SHA256SUMS by any of the given keys")
    if other := set(sums.splitlines()) ^ set(sha256sums(found).splitlines()):
        name = min(other)[66:].decode(errors="replace")
        raise InvalidSignature(f"SHA256SUMS names other files than there are: {name} differs, is missing or was not signed")


def _check_provenance(sidecars: dict[str, bytes], found: dict[str, str], keys: list[PublicKey]) -> None:
    report = sidecars.get("report.json")
    if "provenance.json" not in sidecars:
        if report is not None:
            raise InvalidSignature("report.json is vouched for by provenance.json, which is missing")
        return
    _, statement = _open_envelope(_json(sidecars["provenance.json"], "provenance.json"), keys, "provenance.json")
    _expect(statement.get("predicateType") == PROVENANCE_PREDICATE, "provenance.json", f"its predicate is not {PROVENANCE_PREDICATE}")
    try:
        subjects = {s["name"]: s["digest"]["sha256"] for s in statement["subject"]}
        named = {b["name"]: b["digest"]["sha256"] for b in statement["predicate"]["runDetails"]["byproducts"]}
    except (KeyError, TypeError):
        raise InvalidSignature("provenance.json is not a provenance statement") from None
    _expect(subjects == found, "provenance.json", "it is about other files than there are")
    if report is not None:
        _expect(hashlib.sha256(report).hexdigest() == named.get("report.json"), "report.json", "it is not the report that provenance.json names")


def _open_bundle(bundle: dict, keys: list[PublicKey]) -> tuple[PublicKey, dict[str, str]]:
    """The key that signed it and path -> SHA-256 of what it names."""
    where = "model.sig"
    _expect(isinstance(bundle, dict) and bundle.get("mediaType") == BUNDLE, where, f"it is not a bundle of type {BUNDLE}")
    try:
        named = bundle["verificationMaterial"]["publicKey"]["hint"]
    except (KeyError, TypeError):
        raise InvalidSignature(f"{where} does not name its public key") from None
    chosen = [k for k in keys if hint(k) == named]
    _expect(bool(chosen), where, "it was made by a key that is not among those given")
    key, statement = _open_envelope(bundle.get("dsseEnvelope"), chosen, where)
    _expect(statement.get("predicateType") == MODEL_PREDICATE, where, f"its predicate is not {MODEL_PREDICATE}")
    try:
        (subject,) = statement["subject"]
        root = subject["digest"]["sha256"]
        method = statement["predicate"]["serialization"]
        resources = [(r["name"], r["algorithm"], r["digest"]) for r in statement["predicate"]["resources"]]
    except (KeyError, TypeError, ValueError):
        raise InvalidSignature(f"{where} is not a model statement") from None
    by_file = isinstance(method, dict) and (method.get("method"), method.get("hash_type")) == ("files", "sha256")
    _expect(by_file, where, "it does not hash files by SHA-256")
    for name, algorithm, digest in resources:
        _expect(isinstance(name, str) and safe_path(name), where, f"it names the path {str(name)[:200]!r}, which leaves the folder")
        _expect(algorithm == "sha256" and isinstance(digest, str) and bool(DIGEST.fullmatch(digest)), where, f"it has no SHA-256 of {name[:200]!r}")
    files = {name: digest for name, _, digest in resources}
    _expect(len(files) == len(resources), where, "it names a file twice")
    joined = b"".join(bytes.fromhex(digest) for _, _, digest in resources)
    _expect(hashlib.sha256(joined).hexdigest() == root, where, "its root digest is not that of its files")
    return key, files


def _open_envelope(envelope: object, keys: list[PublicKey], where: str) -> tuple[PublicKey, dict]:
    """The key and the statement of a DSSE envelope, its signature checked before the payload is parsed."""
    try:
        payload_type, payload, (signature,) = envelope["payloadType"], envelope["payload"], envelope["signatures"]
        payload, raw = base64.b64decode(payload, validate=True), base64.b64decode(signature["sig"], validate=True)
    except (KeyError, TypeError, ValueError, binascii.Error):
        raise InvalidSignature(f"{where} is not a DSSE envelope with one signature") from None
    _expect(payload_type == PAYLOAD_TYPE, where, f"its payload is not of type {PAYLOAD_TYPE}")
    key = next((k for k in keys if holds(k, raw, pae(payload))), None)
    _expect(key is not None, where, "its signature does not hold under any of the given keys")
    statement = _json(payload, where)
    _expect(statement.get("_type") == STATEMENT, where, f"it is not a statement of type {STATEMENT}")
    return key, statement


def _compare(signed: Mapping[str, str], found: Mapping[str, str]) -> None:
    differs = sorted(p for p in signed if p in found and found[p] != signed[p])
    missing, extra = sorted(signed.keys() - found.keys()), sorted(p for p in found.keys() - signed.keys() if not of_git(p))
    for paths, what in ((differs, "is not the file that was signed"), (missing, "was signed and is missing"), (extra, "was not signed")):
        if paths:
            others = len(differs) + len(missing) + len(extra) - 1
            more = f" ({others} more do not match)" if others else ""
            raise InvalidSignature(f"{paths[0][:500]} {what}{more}", differs=differs[:20], missing=missing[:20], extra=extra[:20])


def _walk(folder: Path):
    """Every file below `folder`; a link or a device could be anything tomorrow, so neither is verified."""
    for path in sorted(folder.iterdir()):
        if path.is_symlink() or not (path.is_dir() or path.is_file()):
            raise InvalidSignature(f"{path} is neither a file nor a folder")
        if path.is_dir():
            yield from _walk(path)
        else:
            yield path


def _hash(path: Path, progress: Callable[[int], None]) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as f:
        while block := f.read(CHUNK):
            digest.update(block)
            progress(len(block))
    return digest.hexdigest()


def _read(path: Path) -> bytes:
    _expect(not path.is_symlink() and path.stat().st_size <= MAX_SIDECAR, path.name, f"it is a link, or larger than {MAX_SIDECAR} bytes")
    return path.read_bytes()


def _json(data: bytes, where: str) -> dict:
    try:
        document = parse_json(data)
    except MalformedJson as e:
        raise InvalidSignature(f"{where} is not valid: {e.detail}") from None
    _expect(isinstance(document, dict), where, "it is not a JSON object")
    return document


def safe_path(path: str) -> bool:
    return not path.startswith("/") and path == PurePosixPath(path).as_posix() and not {"", ".", ".."} & set(path.split("/"))


def _expect(condition: bool, where: str, why: str) -> None:
    if not condition:
        raise InvalidSignature(f"{where} does not hold: {why}")
