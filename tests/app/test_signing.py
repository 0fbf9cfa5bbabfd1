from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from app import rotation, signing
from app.errors import InvalidSignature, Unavailable
from app.statement import SIDECARS, artifact_digest, bundle, canonical, model_statement, provenance, sha256sums, sign_artifact

GOLDEN = Path(__file__).with_name("provenance.golden.json")
SPEC = {
    "input": "00000000-0000-4000-8000-000000000000",
    "recipe": {"steps": [{"method": "lossless", "targets": ["*"], "ignore": []}]},
    "output": {"format": "packed"},
    "gates": {"max_bytes": 10},
    "device": "auto",
    "sanitize": "report",
    "seed": 7,
    "tags": {"team": "secret"},
}


def made(files: dict[str, str]) -> dict:
    return provenance(
        files,
        job_id="11111111-1111-4111-8111-111111111111",
        spec=SPEC,
        input_digest="c" * 64,
        input_files={"model.safetensors": "d" * 64},
        environment={"python": "3.11.2", "torch": "2.13.0"},
        started=1700000000.25,
        finished=1700000001.75,
        report="e" * 64,
    )


def signed_folder(folder: Path, contents: dict[str, bytes], key=None) -> tuple[Path, Path]:
    """`folder/result` with its sidecars, and the path of the public key."""
    key = key or signing.open_key(folder / "keys")
    root, report = folder / "result", b'{"version": 1}'
    for path, data in contents.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(data)
    files = {path: hashlib.sha256(data).hexdigest() for path, data in contents.items()}
    statement = made(files)
    statement["predicate"]["runDetails"]["byproducts"][0]["digest"]["sha256"] = hashlib.sha256(report).hexdigest()
    for name, data in (sign_artifact(key, files, "demo", statement) | {"report.json": report}).items():
        (root / name).write_bytes(data)
    pem = folder / "key.pem"
    pem.write_bytes(signing.public_pem(key.public_key()))
    return root, pem


CONTENTS = {"config.json": b"{}", "model.safetensors": os.urandom(3000), "sub folder/a b.txt": b"", ".gitattributes": b"x"}
CONTENTS |= {"back\\slash": b"y", "new\nline": b"z"}


def run(*command, cwd=None) -> subprocess.CompletedProcess:
    return subprocess.run([str(c) for c in command], cwd=cwd, capture_output=True, text=True, timeout=60)


def test_openssl_and_sha256sum_verify_the_sums(tmp_path):
    root, pem = signed_folder(tmp_path, CONTENTS)
    command = ("openssl", "dgst", "-sha256", "-verify", pem, "-signature", "SHA256SUMS.sig", "SHA256SUMS")
    assert run(*command, cwd=root).returncode == 0
    assert run("sha256sum", "-c", "--strict", "SHA256SUMS", cwd=root).returncode == 0
    with (root / "SHA256SUMS").open("ab") as f:
        f.write(b"\n")
    assert run(*command, cwd=root).returncode != 0


def test_the_model_signing_tool_verifies_the_folder(tmp_path):
    root, pem = signed_folder(tmp_path, CONTENTS)
    tool = (Path(sys.executable).with_name("model_signing"), "verify", "key", "--signature", root / "model.sig", "--public_key", pem, root)
    assert (done := run(*tool)).returncode == 0, done.stderr
    assert (done := run(*tool, "--no-ignore-git-paths")).returncode == 0, done.stderr
    (root / "config.json").write_bytes(b"[]")
    assert (done := run(*tool)).returncode != 0 and "config.json" in done.stderr


def test_the_model_statement_is_the_one_that_the_tool_makes(tmp_path):
    from model_signing import hashing
    from model_signing._signing.sign_ec_key import Signer
    from model_signing._signing.signing import Payload

    root, _ = signed_folder(tmp_path, CONTENTS)
    key = signing.open_key(tmp_path / "keys")
    config = hashing.Config().set_ignored_paths(paths=SIDECARS)
    theirs = json.loads(Signer(tmp_path / "keys/signing.pem").sign(Payload(config.hash(root))).bundle.to_json())
    ours = bundle(key, model_statement({p: hashlib.sha256(d).hexdigest() for p, d in CONTENTS.items()}, "result"))
    payloads = []
    for b in (theirs, ours):
        payload = json.loads(base64.b64decode(b["dsseEnvelope"].pop("payload")))
        payload["predicate"]["serialization"]["ignore_paths"] = sorted(Path(p).name for p in payload["predicate"]["serialization"]["ignore_paths"])
        payloads.append(payload)
        b["dsseEnvelope"]["signatures"][0].pop("sig")
    assert payloads[0] == payloads[1]
    assert theirs == ours


def test_provenance_is_the_golden_one():
    statement = made({"b/model.packed.safetensors": "a" * 64, "a.json": "b" * 64})
    assert json.loads(GOLDEN.read_text()) == statement
    assert "secret" not in canonical(statement).decode()


def test_artifact_digest_sorts_lines():
    files = [{"path": "b", "size": 2, "sha256": "1" * 64}, {"path": "a", "size": 1, "sha256": "2" * 64}]
    want = hashlib.sha256(f"a 1 {'2' * 64}\nb 2 {'1' * 64}\n".encode()).hexdigest()
    assert artifact_digest(files) == artifact_digest(reversed(files)) == want


def test_sums_escape_as_coreutils_do(tmp_path):
    (tmp_path / "a\\b\nc").write_bytes(b"1")
    (tmp_path / "plain").write_bytes(b"2")
    ours = sha256sums({p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in tmp_path.iterdir()})
    assert ours.decode() == run("sha256sum", "a\\b\nc", "plain", cwd=tmp_path).stdout


def test_the_key_is_private_stable_and_published(tmp_path):
    key = signing.open_key(tmp_path)
    assert (tmp_path / "signing.pem").stat().st_mode & 0o777 == 0o600
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == ["signing.pem"]
    again = signing.open_key(tmp_path)
    ident = signing.key_id(key.public_key())
    assert signing.key_id(again.public_key()) == ident and list(signing.public_keys(tmp_path)) == [ident]
    der = run("openssl", "ec", "-in", tmp_path / "signing.pem", "-pubout", "-outform", "DER", "-out", tmp_path / "der")
    assert der.returncode == 0 and hashlib.sha256((tmp_path / "der").read_bytes()).hexdigest() == ident


def test_many_first_starts_agree_on_one_key(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        keys = list(pool.map(lambda _: signing.open_key(tmp_path), range(8)))
    assert len({signing.key_id(k.public_key()) for k in keys}) == 1


def test_a_lost_key_is_not_replaced_in_silence(tmp_path):
    signing.open_key(tmp_path)
    (tmp_path / "signing.pem").unlink()
    with pytest.raises(Unavailable, match="is gone"):
        signing.open_key(tmp_path)
    new = rotation.rotate(tmp_path)
    assert len(signing.public_keys(tmp_path)) == 2 and signing.key_id(new.public_key()) in signing.public_keys(tmp_path)


@pytest.mark.parametrize(
    "content, mode, message", [(b"", 0o600, "not a private key"), (b"garbage", 0o600, "not a private key"), (None, 0o644, "read by others")]
)
def test_a_bad_key_is_not_used(tmp_path, content, mode, message):
    signing.open_key(tmp_path)
    path = tmp_path / "signing.pem"
    if content is not None:
        path.write_bytes(content)
    path.chmod(mode)
    with pytest.raises(Unavailable, match=message):
        signing.open_key(tmp_path)


def test_only_p256_is_a_public_key(tmp_path):
    run("openssl", "ecparam", "-name", "secp384r1", "-genkey", "-noout", "-out", tmp_path / "k.pem")
    run("openssl", "ec", "-in", tmp_path / "k.pem", "-pubout", "-out", tmp_path / "p.pem")
    for pem in ((tmp_path / "p.pem").read_bytes(), b"", b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"):
        with pytest.raises(InvalidSignature):
            signing.parse_public(pem)


def test_jwks_holds_the_same_point(tmp_path):
    from cryptography.hazmat.primitives.asymmetric import ec

    key = signing.open_key(tmp_path).public_key()
    (jwk,) = signing.jwks([key])["keys"]
    x, y = (int.from_bytes(base64.urlsafe_b64decode(jwk[c] + "="), "big") for c in "xy")
    assert ec.EllipticCurvePublicNumbers(x, y, ec.SECP256R1()).public_key() == key and jwk["kid"] == signing.key_id(key)
