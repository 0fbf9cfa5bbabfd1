"""The commands that need no service, as processes."""

from __future__ import annotations

import hashlib
import json
import os

import pytest
import warm

from app import signing
from app.statement import provenance, sign_artifact


@pytest.fixture
def home(tmp_path):
    return tmp_path / "home"


@pytest.fixture
def modelpress(home, tmp_path):
    """Runs `modelpress ARGS`, in a home of its own, where no service listens."""

    def run(*args, **env):
        variables = {k: v for k, v in os.environ.items() if not k.startswith("MODELPRESS_")}
        variables |= {"MODELPRESS_HOME": str(home), "MODELPRESS_PORT": "9", "COLUMNS": "200"} | env
        return warm.run("app.cli", *map(str, args), env=variables)

    return run


@pytest.fixture
def result(home, tmp_path):
    key = signing.open_key(home / "keys")
    folder = tmp_path / "result"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights")
    files = {"model.safetensors": hashlib.sha256(b"weights").hexdigest()}
    made = provenance(files, job_id="j", spec={}, input_digest="c" * 64, input_files={}, environment={}, started=0, finished=1, report=None)
    for name, data in sign_artifact(key, files, "demo", made).items():
        (folder / name).write_bytes(data)
    return folder


def test_verify_takes_the_homes_keys_or_the_given_one(modelpress, result, tmp_path):
    assert (done := modelpress("verify", result)).returncode == 0 and "1 files hold" in done.stdout, done.stderr
    done = modelpress("verify", result, "--json")
    assert json.loads(done.stdout)["files"] == {"model.safetensors": hashlib.sha256(b"weights").hexdigest()}
    (pem,) = (tmp_path / "home/keys/public").iterdir()
    assert modelpress("verify", result, "--key", pem, MODELPRESS_HOME=str(tmp_path / "nowhere")).returncode == 0
    done = modelpress("verify", result, MODELPRESS_HOME=str(tmp_path / "nowhere"))
    assert done.returncode == 1 and "--key" in done.stderr


def test_verify_names_the_file_on_one_line(modelpress, result):
    (result / "model.safetensors").write_bytes(b"Weights")
    done = modelpress("verify", result)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.splitlines()[-1] == "The signature does not hold: model.safetensors is not the file that was signed [invalid-signature]"


def test_no_service_exits_3_and_says_what_to_do(modelpress):
    done = modelpress("jobs")
    assert done.returncode == 3 and "http://127.0.0.1:9" in done.stderr and "modelpress up" in done.stderr


@pytest.mark.parametrize("args", [[], ["--preset", "int8", "--recipe", "FILE"], ["--preset", "int8", "-o", "FOLDER"]])
def test_wrong_usage_exits_2(modelpress, result, args):
    args = [str(result / "model.safetensors") if a == "FILE" else str(result) if a == "FOLDER" else a for a in args]
    done = modelpress("compress", result / "model.safetensors", *args, *([] if "-o" in args else ["-o", result.parent / "new"]))
    assert done.returncode == 2, done.stderr


@pytest.mark.parametrize("recipe, pointer", [('{"steps": [{"method": "quantize", "num_bits": 65}]}', "/steps/0/num_bits"), ("{", None), ("[]", None)])
def test_a_wrong_recipe_is_refused_before_anything_is_sent(modelpress, result, recipe, pointer):
    path = result.parent / "r.json"
    path.write_text(recipe)
    done = modelpress("compress", result / "model.safetensors", "--recipe", path, "-o", result.parent / "new")
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1 and (pointer or "") in done.stderr


def test_keys_rotate_keeps_the_old_public_key(modelpress, result, home):
    (old,) = signing.public_keys(home / "keys")
    done = modelpress("keys", "--rotate", "--json")
    kids = [k["kid"] for k in json.loads(done.stdout)["keys"]]
    assert kids[1:] == [old] and kids[0] != old
    assert modelpress("verify", result).returncode == 0


def test_every_command_helps(modelpress):
    for command in ("up", "compress", "jobs", "verify", "restore", "keys", "api", "worker", "sign", "control", "webhooks"):
        assert (done := modelpress(command, "--help")).returncode == 0 and "Usage" in done.stdout
