from __future__ import annotations

import base64
import copy
import hashlib
import json
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app import signing
from app.errors import InvalidSignature
from app.statement import MODEL_PREDICATE, bundle, canonical, envelope, model_statement, provenance, sign_artifact
from app.verify import SIDE_FOLDER, verify_bundle, verify_folder

CONTENTS = {"config.json": b"{}", "model.safetensors": bytes(range(256)) * 5000, "sub/a b.txt": b"", ".gitattributes": b"x"}
SIDECARS = ("SHA256SUMS", "SHA256SUMS.sig", "model.sig", "provenance.json", "report.json")


@pytest.fixture
def key(tmp_path):
    return signing.open_key(tmp_path / "keys")


def fill(root, key, contents=CONTENTS, side=None):
    """A result's folder, as a download leaves it."""
    report = b'{"version": 1}'
    for path, data in contents.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(data)
    files = {path: hashlib.sha256(data).hexdigest() for path, data in contents.items()}
    told = hashlib.sha256(report).hexdigest()
    made = provenance(files, job_id="j", spec={}, input_digest="c" * 64, input_files={}, environment={}, started=0, finished=1, report=told)
    where = root / side if side else root
    where.mkdir(exist_ok=True)
    for name, data in (sign_artifact(key, files, "demo", made) | {"report.json": report}).items():
        (where / name).write_bytes(data)
    return root


def test_a_whole_folder_holds(tmp_path, key):
    hashed = []
    done = verify_folder(fill(tmp_path / "r", key), [key.public_key()], hashed.append)
    assert done.files.keys() == CONTENTS.keys() and done.checked == SIDECARS and done.key_id == signing.key_id(key.public_key())
    assert sum(hashed) == sum(map(len, CONTENTS.values()))


@pytest.mark.parametrize("path", [p for p in CONTENTS if CONTENTS[p]] + list(SIDECARS))
def test_one_changed_bit_is_found_and_named(tmp_path, key, path):
    target = fill(tmp_path / "r", key) / path
    data = bytearray(target.read_bytes())
    data[len(data) // 2] ^= 1
    target.write_bytes(data)
    with pytest.raises(InvalidSignature) as e:
        verify_folder(tmp_path / "r", [key.public_key()])
    assert path in e.value.detail
    assert e.value.extra.get("differs", []) == ([path] if path in CONTENTS and path != ".gitattributes" else [])


@pytest.mark.parametrize("path", list(CONTENTS) + ["model.sig", "SHA256SUMS", "SHA256SUMS.sig", "provenance.json"])
def test_a_missing_file_is_named(tmp_path, key, path):
    (fill(tmp_path / "r", key) / path).unlink()
    with pytest.raises(InvalidSignature, match=path.replace(".", r"\.")):
        verify_folder(tmp_path / "r", [key.public_key()])


def test_only_the_bundle_is_needed(tmp_path, key):
    root = fill(tmp_path / "r", key, {k: v for k, v in CONTENTS.items() if k != ".gitattributes"})
    for name in ("SHA256SUMS", "SHA256SUMS.sig", "provenance.json", "report.json"):
        (root / name).unlink()
    assert verify_folder(root, [key.public_key()]).checked == ("model.sig",)


def test_gits_own_files_are_covered_by_the_sums(tmp_path, key):
    root = fill(tmp_path / "r", key)
    (root / ".gitignore").write_text("*")
    with pytest.raises(InvalidSignature, match="gitignore"):
        verify_folder(root, [key.public_key()])
    (root / ".gitignore").unlink()
    for name in ("SHA256SUMS", "SHA256SUMS.sig"):
        (root / name).unlink()
    with pytest.raises(InvalidSignature, match="only it covers .gitattributes"):
        verify_folder(root, [key.public_key()])


def test_an_extra_file_and_a_link_are_refused(tmp_path, key):
    root = fill(tmp_path / "r", key)
    (root / "sub/evil.py").write_text("1")
    with pytest.raises(InvalidSignature, match="sub/evil.py was not signed") as e:
        verify_folder(root, [key.public_key()])
    assert e.value.extra == {"differs": [], "missing": [], "extra": ["sub/evil.py"]}
    (root / "sub/evil.py").unlink()
    (root / "config.json").rename(tmp_path / "config.json")
    (root / "config.json").symlink_to(tmp_path / "config.json")
    with pytest.raises(InvalidSignature, match="neither a file nor a folder"):
        verify_folder(root, [key.public_key()])


def test_another_key_does_not_do(tmp_path, key):
    other = signing.open_key(tmp_path / "others").public_key()
    root = fill(tmp_path / "r", key)
    with pytest.raises(InvalidSignature, match="not among those given"):
        verify_folder(root, [other])
    with pytest.raises(InvalidSignature):
        verify_folder(root, [])
    assert verify_folder(root, [other, key.public_key()]).key_id == signing.key_id(key.public_key())


def test_sidecars_of_another_result_do_not_do(tmp_path, key):
    ours, theirs = fill(tmp_path / "a", key), fill(tmp_path / "b", key, {"config.json": b"other"})
    for name in ("provenance.json", "SHA256SUMS"):
        root = fill(tmp_path / name, key)
        (root / name).write_bytes((theirs / name).read_bytes())
        if name == "SHA256SUMS":
            (root / "SHA256SUMS.sig").write_bytes((theirs / "SHA256SUMS.sig").read_bytes())
        with pytest.raises(InvalidSignature, match="SHA256SUMS names other files|it is about other files"):
            verify_folder(root, [key.public_key()])
    assert verify_folder(ours, [key.public_key()])


def test_a_result_may_have_files_called_like_sidecars(tmp_path, key):
    root = fill(tmp_path / "r", key, CONTENTS | {"model.sig": b"somebody else's", "report.json": b"[]"}, side=SIDE_FOLDER)
    assert verify_folder(root, [key.public_key()]).checked == SIDECARS
    (root / "model.sig").write_bytes(b"changed")
    with pytest.raises(InvalidSignature, match="model.sig is not the file"):
        verify_folder(root, [key.public_key()])


FILES = {"a": "1" * 64, "b": "2" * 64}


def statement(**change) -> dict:
    out = model_statement(FILES, "demo")
    out["predicate"] |= change.pop("predicate", {})
    return out | change


@pytest.mark.parametrize(
    "made",
    [
        statement(_type="https://in-toto.io/Statement/v0.1"),
        statement(predicateType="https://slsa.dev/provenance/v1"),
        statement(subject=[]),
        statement(subject=[{"name": "x", "digest": {"sha256": "0" * 64}}]),
        statement(subject="x"),
        statement(predicate={"resources": {}}),
        statement(predicate={"resources": [1]}),
        statement(predicate={"resources": [{"name": "../a", "algorithm": "sha256", "digest": "1" * 64}]}),
        statement(predicate={"resources": [{"name": "/a", "algorithm": "sha256", "digest": "1" * 64}]}),
        statement(predicate={"resources": [{"name": "a", "algorithm": "md5", "digest": "1" * 32}]}),
        statement(predicate={"resources": [{"name": "a", "algorithm": "sha256", "digest": "zz"}]}),
        statement(predicate={"resources": [{"name": ["a"], "algorithm": "sha256", "digest": "1" * 64}]}),
        statement(predicate={"serialization": {"method": "shards", "hash_type": "sha256"}}),
        statement(predicate={"serialization": None}),
    ],
)
def test_a_well_signed_but_wrong_statement_is_refused(key, made):
    with pytest.raises(InvalidSignature):
        verify_bundle(bundle(key, made), FILES, [key.public_key()])


def test_a_name_given_twice_is_refused(key):
    twice = model_statement(FILES, "demo")
    twice["predicate"]["resources"] = [{"name": "a", "algorithm": "sha256", "digest": d} for d in ("1" * 64, "2" * 64)]
    with pytest.raises(InvalidSignature, match="twice"):
        verify_bundle(bundle(key, twice), {"a": "2" * 64}, [key.public_key()])


def test_an_envelope_signed_for_another_purpose_is_refused(key):
    """The provenance's envelope, put into a bundle, is well signed and no model statement."""
    stolen = bundle(key, model_statement(FILES, "demo"))
    other = {"_type": "https://in-toto.io/Statement/v1", "predicateType": "https://slsa.dev/provenance/v1", "subject": []}
    stolen["dsseEnvelope"] = envelope(key, other)
    with pytest.raises(InvalidSignature, match=MODEL_PREDICATE):
        verify_bundle(stolen, FILES, [key.public_key()])


LEAVES = st.none() | st.booleans() | st.integers() | st.text(max_size=5)
JSON = st.recursive(LEAVES, lambda c: st.lists(c, max_size=3) | st.dictionaries(st.text(max_size=3), c, max_size=3))
PLACES = [
    ("mediaType",), ("verificationMaterial",), ("verificationMaterial", "publicKey"), ("verificationMaterial", "publicKey", "hint"),
    ("dsseEnvelope",), ("dsseEnvelope", "payload"), ("dsseEnvelope", "payloadType"), ("dsseEnvelope", "signatures"),
    ("dsseEnvelope", "signatures", 0), ("dsseEnvelope", "signatures", 0, "sig"),
]  # fmt: skip


@settings(max_examples=100, deadline=None)
@given(place=st.sampled_from(PLACES), value=JSON)
def test_any_other_json_in_a_bundle_is_refused(place, value):
    key = HYPOTHESIS_KEY
    hostile = copy.deepcopy(bundle(key, model_statement(FILES, "demo")))
    at = hostile
    for step in place[:-1]:
        at = at[step]
    at[place[-1]] = value
    with pytest.raises(InvalidSignature):
        verify_bundle(hostile, FILES, [key.public_key()])


@settings(max_examples=50, deadline=None)
@given(value=JSON)
def test_anything_else_for_a_bundle_is_refused(value):
    with pytest.raises(InvalidSignature):
        verify_bundle(value, FILES, [HYPOTHESIS_KEY.public_key()])


@pytest.mark.parametrize("text", [b"", b"[]", b"{", b'{"a": 1, "a": 2}', b"[" * 100000, b"\xff", os.urandom(100)])
def test_a_broken_bundle_file_is_refused(tmp_path, key, text):
    root = fill(tmp_path / "r", key)
    (root / "model.sig").write_bytes(text)
    with pytest.raises(InvalidSignature, match="model.sig"):
        verify_folder(root, [key.public_key()])


def test_payload_bytes_are_what_is_signed(key):
    """Whitespace in the payload is a change; so is sloppy base64."""
    whole = bundle(key, model_statement(FILES, "demo"))
    payload = base64.b64decode(whole["dsseEnvelope"]["payload"])
    for changed in (base64.b64encode(payload + b" ").decode(), whole["dsseEnvelope"]["payload"] + "\n"):
        hostile = json.loads(canonical(whole))
        hostile["dsseEnvelope"]["payload"] = changed
        with pytest.raises(InvalidSignature):
            verify_bundle(hostile, FILES, [key.public_key()])
    assert verify_bundle(whole, FILES, [key.public_key()]).files == FILES


def _hypothesis_key():
    from cryptography.hazmat.primitives.asymmetric import ec

    return ec.generate_private_key(ec.SECP256R1())


HYPOTHESIS_KEY = _hypothesis_key()
