"""The README's commands, typed into a shell against a running service, in order."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BLOCKS = re.findall(r"^```sh service\n(.*?)^```$", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)


@pytest.fixture
def models(tmp_path):
    """`my-model/`, a small BERT as transformers saves it, with a tokenizer; `model.safetensors`; `texts.txt`; the examples."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import BertConfig, BertModel

    config = BertConfig(vocab_size=200, hidden_size=128, num_hidden_layers=2, num_attention_heads=2, intermediate_size=256)
    BertModel(config).save_pretrained(tmp_path / "my-model")
    (tmp_path / "model.safetensors").write_bytes((tmp_path / "my-model/model.safetensors").read_bytes())
    words = "the ferry leaves at six and returns after dark when rain has ended".split()
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(["[UNK]", *words])}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.save(str(tmp_path / "my-model/tokenizer.json"))
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    (tmp_path / "texts.txt").write_text("\n".join(" ".join(words[i % 5 : i % 5 + 3 + i % 7]) for i in range(40)) + "\n")
    return tmp_path


@pytest.mark.timeout(600)  # four kinds of children, each of which imports torch and transformers first
def test_the_commands_do_what_they_say(service, models):
    script = "\n".join(BLOCKS)
    here = {"$PWD/.venv/bin": str(Path(sys.executable).parent), "http://127.0.0.1:8720": service.url, "~/.modelpress": str(service.home)}
    for written, actual in here.items():
        assert written in script
        script = script.replace(written, actual)
    variables = {k: v for k, v in os.environ.items() if not k.startswith("MODELPRESS_")}
    variables |= {"MODELPRESS_URL": service.url, "MODELPRESS_HOME": str(service.home), "COLUMNS": "200"}
    done = subprocess.run(["bash", "-euo", "pipefail", "-c", script], cwd=models, env=variables, capture_output=True, text=True, timeout=540)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    for promise in ("Verified OK", "model.packed.safetensors: OK", "Verification succeeded", "files hold", "quality on 4 samples: cosine 0.9"):
        assert promise in done.stdout, promise
    from transformers import AutoModel

    assert AutoModel.from_pretrained(models / "small").config.quantization_config
