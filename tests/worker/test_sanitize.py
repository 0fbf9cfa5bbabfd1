"""Secrets planted in every format and place: reported with their place, gone from every byte of a stripped result, and the weights are as they were."""

from __future__ import annotations

import gzip
import io
import json
import re
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from programs import exported
from safetensors.torch import load_file, save
from secrets_planted import PLANTED

from app.recipe import parse_recipe
from worker import pipeline
from worker.formats import open_checkpoint

W = {"a.weight": torch.randn(8, 16, generator=torch.Generator().manual_seed(0)), "b.weight": torch.arange(12.0).reshape(3, 4).bfloat16()}
TOKENIZER = {"version": "1.0", "added_tokens": [], "model": {"type": "BPE", "vocab": {"/home/x": 0, "a@b.com": 1, "C:\\x\\y": 2}, "merges": ["/home /x"]}}
EVERY = " and\n".join(PLANTED.values())
# What must not be left of each. Of an address with a password, the password; of what JSON escapes, a part.
CORES = {**PLANTED, "private key": "MIIEpAIBAAKCAQEA7bq98F", "password in an address": "Tr0ub4dor.and3", "Windows path": "secretmodel", "path": "jroe/projects"}


def saved(value: object) -> bytes:
    torch.save(value, out := io.BytesIO())
    return out.getvalue()


def zipped(members: dict[str, bytes], comment: bytes = b"", method: int = zipfile.ZIP_STORED) -> bytes:
    with zipfile.ZipFile(out := io.BytesIO(), "w", method) as z:
        for name, data in members.items():
            z.writestr(name, data)
        z.comment = comment
    return out.getvalue()


def tarred(members: dict[str, bytes]) -> bytes:
    with tarfile.open(fileobj=(out := io.BytesIO()), mode="w:gz", format=tarfile.PAX_FORMAT) as t:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size, info.uname, info.pax_headers = len(data), "jroe", {"comment": EVERY}
            t.addfile(info, io.BytesIO(data))
    return out.getvalue()


def arrays() -> bytes:
    np.savez_compressed(out := io.BytesIO(), note=np.frombuffer(EVERY.encode(), np.uint8), x=np.arange(4.0))
    return out.getvalue()


def program() -> bytes:
    """With notes of the exporter, a file beside the program, and stack traces as the exporter writes them."""
    with zipfile.ZipFile(io.BytesIO(exported("mlp"))) as z, zipfile.ZipFile(out := io.BytesIO(), "w") as target:
        for name in z.namelist():
            data = z.read(name)
            if name.endswith("models/model.json"):
                document = json.loads(data)
                for node in document["graph_module"]["graph"]["nodes"]:
                    node["metadata"]["stack_trace"] = EVERY
                data = json.dumps(document).encode()
            target.writestr(name, data)
        target.writestr(name.split("/")[0] + "/extra/notes.txt", EVERY)
    return out.getvalue()


MODEL = {"model.safetensors": save(W, {"format": "pt"}), "config.json": b'{"model_type": "x"}'}
SENTENCEPIECE = b"\x0a\x0d\x0a\x07/home/x\x15\x00\x00\x00\x00" + b"\x12" + bytes([0x80 | len(EVERY) & 127, len(EVERY) >> 7]) + EVERY.encode()
PLACES: dict[str, dict[str, bytes]] = {
    "safetensors": {"m.safetensors": save(W, {"format": EVERY, "note": EVERY})},
    "torch extras": {"m.pt": saved({"model": W, "args": {"out": EVERY}, "optimizer": {"state": {0: torch.ones(3)}, "x": [EVERY]}})},
    "torch strings in a list": {"m.pth": saved(W | {"notes": list(PLANTED.values())})},
    "pt2": {"net.pt2": program()},
    "config": MODEL | {"config.json": json.dumps({"model_type": "x", "n": [{"p": EVERY}], EVERY: 1}).encode()},
    "tokenizer": MODEL | {"tokenizer.json": json.dumps(TOKENIZER | {"trainer": {"files": [EVERY]}}).encode()},
    "tokenizer_config": MODEL | {"tokenizer_config.json": json.dumps({"bos_token": "<s>", "name_or_path": EVERY}).encode()},
    "README": MODEL | {"README.md": f"---\nlicense: mit\n---\n# Model\n{EVERY}\n".encode()},
    "code": MODEL | {"modeling_x.py": f"'''{EVERY}'''\n".encode()},
    "json lines": MODEL | {"log.jsonl": (json.dumps({"t": EVERY}) + "\n").encode()},
    "sentencepiece": MODEL | {"tokenizer.model": SENTENCEPIECE},
    "npz beside": MODEL | {"extra.npz": arrays()},
    "gzip beside": MODEL | {"bpe.txt.gz": gzip.compress(EVERY.encode())},
    "zip beside": MODEL | {"notes.zip": zipped({"n.txt": EVERY.encode()}, method=zipfile.ZIP_DEFLATED)},
    "other weights": MODEL | {"pytorch_model.bin": saved(W | {"extra": EVERY}), "original/m.safetensors": save(W, {"note": EVERY})},
    "training": MODEL | {"training_args.bin": saved({"x": EVERY}), "optimizer.pt": saved({"state": {0: {"exp_avg": torch.ones(3)}}, "x": EVERY}), ".env": EVERY.encode()},
    "index": {
        "model-1.safetensors": save({"a.weight": W["a.weight"]}), "model-2.safetensors": save({"b.weight": W["b.weight"]}), "config.json": b"{}",
        "model.safetensors.index.json": json.dumps({"metadata": {"by": EVERY}, "weight_map": {"a.weight": "model-1.safetensors", "b.weight": "model-2.safetensors"}}).encode(),
    },
    "zip": {"m.zip": zipped({f"home/jroe/projects/{k}": v for k, v in MODEL.items()}, comment=EVERY.encode())},
    "zip of texts": {"m.zip": zipped(MODEL | {"README.md": EVERY.encode()}, method=zipfile.ZIP_DEFLATED)},
    "tar": {"m.tar.gz": tarred({f"home/jroe/projects/{k}": v for k, v in MODEL.items()})},
}  # fmt: skip
WHOLE_FILES = ("training", "npz beside", "gzip beside")  # a file is left out at once; what it holds is then told as one


def run(source: Path, out: Path, method: str, sanitize: str) -> dict:
    steps = [{"method": method} | ({"num_bits": 8, "targets": ["a.weight", "fc1.weight"]} if method == "quantize" else {})]
    assert parse_recipe({"steps": steps})
    pipeline.run(source, out, {"recipe": {"steps": steps}, "output": {"format": "packed"}, "gates": {}, "sanitize": sanitize}, lambda event: None)
    return json.loads((out / "report.json").read_text())


def tensors(folder: Path, scratch: Path) -> dict[str, bytes]:
    scratch.mkdir()
    c = open_checkpoint(folder, scratch)
    return {n: c.read(n).contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() for n in c.tensors}


def content(folder: Path) -> bytes:
    """Every byte of every file, and of what its members inflate to, and their paths."""
    out = b""
    for p in sorted(q for q in folder.rglob("*") if q.is_file()):
        out += p.relative_to(folder).as_posix().encode() + p.read_bytes() + (gzip.decompress(p.read_bytes()) if p.suffix == ".gz" else b"")
        if zipfile.is_zipfile(p):
            with zipfile.ZipFile(p) as z:
                out += b"".join(z.read(n) for n in z.namelist())
    return out


def uploaded(files: dict[str, bytes], folder: Path) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


@pytest.mark.parametrize("place", PLACES)
def test_planted_secrets_are_found_and_stripped(place, tmp_path):
    source = uploaded(PLACES[place], tmp_path / "in")
    found = run(source, tmp_path / "found", "lossless", "report")["sanitized"]["findings"]
    kinds = {f["what"] for f in found}
    wanted = {"an access token or key", "a private key", "a password in an address", "an e-mail address", "a local path"}
    assert place in WHOLE_FILES[:1] or wanted <= kinds, wanted - kinds
    assert all(set(f) <= {"where", "what", "masked"} and f["where"] for f in found)
    told = json.dumps(found)
    assert not [name for name, core in CORES.items() if core in told]
    before = tensors(source, tmp_path / "scratch")
    for method in ("lossless", "quantize"):
        out = tmp_path / method
        run(source, out, method, "strip")
        pipeline.run(out / "files", tmp_path / f"{method}-back", {"recipe": {"steps": [{"method": "restore"}]}, "output": {"format": "original"}, "sanitize": "report"}, lambda event: None)
        back = tmp_path / f"{method}-back" / "files"
        everything = content(out / "files") + content(back)
        assert not [name for name, core in CORES.items() if core.encode() in everything]
        after = tensors(back, tmp_path / f"{method}-scratch")
        assert after.keys() == before.keys()
        assert method == "quantize" or after == before
    again = run(back, tmp_path / "again", "lossless", "report")["sanitized"]["findings"]
    assert not kinds & {f["what"] for f in again} & wanted
    for p in back.rglob("*.json"):
        json.loads(p.read_text())


def test_without_strip_every_byte_stays(tmp_path):
    source = uploaded(PLACES["README"], tmp_path / "in")
    run(source, tmp_path / "out", "lossless", "report")
    pipeline.run(tmp_path / "out/files", tmp_path / "back", {"recipe": {"steps": [{"method": "restore"}]}, "output": {"format": "original"}, "sanitize": "report"}, lambda event: None)
    assert all((tmp_path / "back/files" / name).read_bytes() == data for name, data in PLACES["README"].items())


def test_what_a_model_loads_stays(tmp_path):
    """A tokenizer with pieces like paths and addresses, hashes, versions: byte for byte, while the rest of the folder is stripped."""
    shared = Path(__file__).parents[3] / "shared/data/stories260k-fp32/tokenizer.json"
    files = {
        "tokenizer.json": shared.read_bytes() if shared.exists() else json.dumps(TOKENIZER).encode(), "vocab.json": json.dumps(TOKENIZER["model"]["vocab"]).encode(),
        "merges.txt": b"#version: 0.2\n/ home\n/home /x\n", "sums.txt": b"d41d8cd98f00b204e9800998ecf8427e  model.safetensors\nv1.2.3.4\n",
        "special_tokens_map.json": b'{"bos_token": "<s>"}', "generation_config.json": b'{"max_new_tokens": 5, "transformers_version": "4.1.0"}',
    }  # fmt: skip
    source = uploaded(MODEL | files | {"README.md": EVERY.encode(), "other/tokenizer.json": json.dumps(TOKENIZER | {"by": EVERY}).encode()}, tmp_path / "in")
    run(source, tmp_path / "out", "lossless", "strip")
    pipeline.run(tmp_path / "out/files", tmp_path / "back", {"recipe": {"steps": [{"method": "restore"}]}, "output": {"format": "original"}, "sanitize": "report"}, lambda event: None)
    back = tmp_path / "back/files"
    assert {name: (back / name).read_bytes() for name in MODEL | files} == MODEL | files
    assert {k: v for k, v in json.loads((back / "other/tokenizer.json").read_text()).items() if k != "by"} == TOKENIZER
    assert re.fullmatch(r"(\(removed\)( and\n)?|https://deploy:\(removed\)/x and\n)+", (back / "README.md").read_text())
    assert load_file(back / "model.safetensors").keys() == W.keys()
