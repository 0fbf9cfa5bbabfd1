"""What is signed, as bytes; nothing here touches a disk, a key or a clock.

    SHA256SUMS        coreutils' text, one line per file                          -> SHA256SUMS.sig, a DER signature over it
    model statement   in-toto v1, predicate https://model_signing/signature/v1.0  -> model.sig, a Sigstore bundle v0.3 around a DSSE envelope
    provenance        in-toto v1, predicate https://slsa.dev/provenance/v1        -> provenance.json, a DSSE envelope

DSSE signs PAE(type, payload) = "DSSEv1" SP len(type) SP type SP len(payload) SP payload (secure-systems-lab/dsse, protocol.md). The model statement
is the one that the OpenSSF's model_signing 1.x writes. It is built here from digests, so that nothing is laid out in a folder to be signed, and
so that the process which holds the key loads no more than `cryptography`.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import PurePosixPath
from types import MappingProxyType

from app.signing import PrivateKey, PublicKey, key_id, public_pem, sign_detached

SIDECARS = ("SHA256SUMS", "SHA256SUMS.sig", "model.sig", "provenance.json", "report.json")
"""What stands beside a result's files, outside its digest."""

GIT_PATHS = (".git", ".gitattributes", ".github", ".gitignore")
"""What `model_signing` passes over in a folder unless told otherwise. model.sig does too, or the tool's plain command would not hold on
a Hugging Face repository; SHA256SUMS and the provenance name every file."""

PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT = "https://in-toto.io/Statement/v1"
MODEL_PREDICATE = "https://model_signing/signature/v1.0"
PROVENANCE_PREDICATE = "https://slsa.dev/provenance/v1"
BUNDLE = "application/vnd.dev.sigstore.bundle.v0.3+json"
BUILD_TYPE = "urn:modelpress:job:v1"


def canonical(document: dict) -> bytes:
    """JSON with sorted keys, no spaces, one line."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def artifact_digest(files: Iterable[Mapping]) -> str:
    """SHA-256 (hex) of the sorted lines `path size sha256`, of mappings with these three keys."""
    return hashlib.sha256("".join(sorted(f"{f['path']} {f['size']} {f['sha256']}\n" for f in files)).encode()).hexdigest()


def sha256sums(files: Mapping[str, str]) -> bytes:
    """What `sha256sum -c` reads, of path -> digest. As there, a name with a backslash or a line break is escaped behind a leading backslash."""

    def line(path: str) -> str:
        escaped = path.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r")
        return ("\\" if escaped != path else "") + f"{files[path]}  {escaped}\n"

    return "".join(line(path) for path in sorted(files)).encode()


def of_git(path: str) -> bool:
    return path.split("/", 1)[0] in GIT_PATHS


def model_statement(files: Mapping[str, str], name: str) -> dict:
    """The statement that `model_signing` makes of a folder with these files (path -> SHA-256).

    The subject's digest is the SHA-256 of all digests (as bytes) in the order of the resources. `ignore_paths` lets the tool pass over the sidecars.
    """
    paths = sorted((p for p in files if not of_git(p)), key=PurePosixPath)
    root = hashlib.sha256(b"".join(bytes.fromhex(files[p]) for p in paths)).hexdigest()
    return {
        "_type": STATEMENT,
        "subject": [{"name": name, "digest": {"sha256": root}}],
        "predicateType": MODEL_PREDICATE,
        "predicate": {
            "serialization": {
                "method": "files",
                "hash_type": "sha256",
                "allow_symlinks": False,
                "ignore_paths": [*GIT_PATHS, *(s for s in SIDECARS if s not in files)],
            },
            "resources": [{"name": p, "algorithm": "sha256", "digest": files[p]} for p in paths],
        },
    }


def provenance(
    files: Mapping[str, str],
    *,
    job_id: str,
    spec: Mapping,
    input_digest: str,
    input_files: Mapping[str, str],
    beside: Mapping[str, str] = MappingProxyType({}),
    environment: Mapping,
    started: float,
    finished: float,
    report: str | None,
    cached: bool = False,
) -> dict:
    """How a result was made, as SLSA provenance; it names no owner.

    Args:
        files, input_files: path -> SHA-256 of what came out and of what went in.
        spec: the resolved job spec (`app.job_spec.JobSpec`).
        input_digest: the input's artifact digest.
        beside: role -> artifact digest of what else went in: gradients, calibration, labels.
        environment: name -> version of what did the work.
        started, finished: seconds since the epoch.
        report: SHA-256 of report.json.
        cached: the result of an earlier, equal job was taken; times and environment are that job's.
    """
    asked = ("recipe", "budget", "output", "gates", "sanitize", "seed", "device")
    also = [{"name": role, "digest": {"sha256": beside[role]}, "annotations": {"over": "path size sha256"}} for role in sorted(beside)]
    inputs = [{"name": f"input/{p}", "digest": {"sha256": d}} for p, d in sorted(input_files.items())]
    return {
        "_type": STATEMENT,
        "subject": [{"name": p, "digest": {"sha256": files[p]}} for p in sorted(files)],
        "predicateType": PROVENANCE_PREDICATE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": {k: spec[k] for k in asked if k in spec and (k != "budget" or spec[k])},
                "internalParameters": {"cached": cached},
                "resolvedDependencies": [{"name": "input", "digest": {"sha256": input_digest}, "annotations": {"over": "path size sha256"}}, *inputs, *also],
            },
            "runDetails": {
                "builder": {"id": "urn:modelpress:worker", "version": {k: str(v) for k, v in environment.items()}},
                "metadata": {"invocationId": job_id, "startedOn": _time(started), "finishedOn": _time(finished)},
                "byproducts": [{"name": "report.json", "digest": {"sha256": report}}] if report else [],
            },
        },
    }


def pae(payload: bytes, payload_type: str = PAYLOAD_TYPE) -> bytes:
    """DSSE's pre-authentication encoding."""
    return b"DSSEv1 %d %s %d %s" % (len(payload_type), payload_type.encode(), len(payload), payload)


def envelope(key: PrivateKey, statement: dict, keyid: str = "") -> dict:
    """A DSSE envelope with one signature."""
    payload = canonical(statement)
    signature = {"sig": _base64(sign_detached(key, pae(payload))), "keyid": keyid}
    return {"payload": _base64(payload), "payloadType": PAYLOAD_TYPE, "signatures": [signature]}


def hint(public: PublicKey) -> str:
    """How a bundle names its key: `model_signing` takes the SHA-256 of the PEM text, and refuses another."""
    return hashlib.sha256(public_pem(public)).hexdigest()


def bundle(key: PrivateKey, statement: dict) -> dict:
    """A Sigstore bundle v0.3, as `model_signing sign key` writes it (no transparency log)."""
    material = {"publicKey": {"hint": hint(key.public_key())}, "tlogEntries": []}
    return {"mediaType": BUNDLE, "verificationMaterial": material, "dsseEnvelope": envelope(key, statement)}


def sign_artifact(key: PrivateKey, files: Mapping[str, str], name: str, made: dict) -> dict[str, bytes]:
    """The four sidecars that signing makes, by name.

    Args:
        files: path -> SHA-256.
        name: the artifact's display name, informative only.
        made: the statement of `provenance`.
    """
    sums = sha256sums(files)
    return {
        "SHA256SUMS": sums,
        "SHA256SUMS.sig": sign_detached(key, sums),
        "model.sig": canonical(bundle(key, model_statement(files, name))),
        "provenance.json": canonical(envelope(key, made, key_id(key.public_key()))),
    }


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(round(seconds), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
