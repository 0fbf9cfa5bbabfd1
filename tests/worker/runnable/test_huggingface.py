"""Folders run as transformers runs them; what cannot be run is refused, with the reason."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest
import tiny_models
import torch
from safetensors.torch import load_file, save_file

from app.errors import InputRefused
from worker import samples
from worker.formats import open_checkpoint
from worker.runnable import architecture, open_runnable, replace, weights
from worker.samples import Samples

TEXTS = tiny_models.texts(12)


def opened(folder, tmp_path):
    return open_runnable(folder, open_checkpoint(folder, tmp_path))


def fitted(runnable, **given):
    return samples.fit(Samples(given.get("texts", []), given.get("tokens", []), given.get("arrays", {}), given.get("labels")), runnable)


@pytest.mark.parametrize("name, task", [("bert", "encoder"), ("classifier", "classifier"), ("regressor", "regressor"), ("llama", "causal-lm"), ("gpt2", "causal-lm")])
def test_it_gives_what_transformers_gives(tmp_path, name, task):
    model = tiny_models.build(name, tmp_path / "m")
    runnable = opened(tmp_path / "m", tmp_path)
    batch = fitted(runnable, texts=TEXTS).batch(range(12))
    with torch.no_grad():
        got, whole = runnable.forward(batch), model(**batch.inputs)
    if task == "encoder":
        hidden = torch.stack([h[m].mean(0) for h, m in zip(whole.last_hidden_state, batch.mask, strict=True)])
        expected = torch.nn.functional.normalize(hidden, dim=-1)
    else:
        expected = whole.logits
    assert runnable.task == task and torch.allclose(got, expected, atol=1e-6)
    assert runnable.longest == 32 and not any(p.requires_grad for p in runnable.module.parameters())


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama"])
def test_parameters_have_the_checkpoints_names_and_can_be_replaced(tmp_path, name):
    tiny_models.build(name, tmp_path / "m")
    tensors = load_file(tmp_path / "m" / "model.safetensors")
    runnable = opened(tmp_path / "m", tmp_path)
    assert runnable.parameters.keys() == tensors.keys() and all(torch.equal(runnable.parameters[n], t) for n, t in tensors.items())
    batch = fitted(runnable, texts=TEXTS).batch(range(12))
    with torch.no_grad():
        before = runnable.forward(batch)
        chosen = next(n for n in tensors if n.endswith(("query.weight", "c_attn.weight", "q_proj.weight")))
        replace(runnable, {chosen: (tensors[chosen] * 2).half(), "another": torch.zeros(1)})
        assert torch.equal(runnable.parameters[chosen], (tensors[chosen] * 2).half().float())
        assert not torch.allclose(runnable.forward(batch), before)
    assert torch.equal(load_file(tmp_path / "m" / "model.safetensors")[chosen], tensors[chosen])  # the file is as it was


@pytest.mark.parametrize("how", ["bin", "shards", "half", "prefix"])
def test_it_runs_from_every_form_of_checkpoint(tmp_path, how):
    model = tiny_models.build("gpt2", tmp_path / "m", n_embd=16)
    weights = tmp_path / "m" / "model.safetensors"
    tensors = load_file(weights)
    if how == "half":
        save_file({n: t.half() for n, t in tensors.items()}, weights)
    elif how == "prefix":  # as older checkpoints of GPT-2 are, with the buffers of their time
        save_file({n.removeprefix("transformer."): t for n, t in tensors.items()} | {"h.0.attn.bias": torch.ones(1, 1, 32, 32)}, weights)
    else:
        weights.unlink()
        if how == "bin":
            torch.save(tensors | {"lm_head.weight": tensors["transformer.wte.weight"]}, tmp_path / "m" / "pytorch_model.bin")
        else:
            model.save_pretrained(tmp_path / "m", max_shard_size="8KB")
            assert len(list((tmp_path / "m").glob("*.safetensors"))) > 2
    runnable = opened(tmp_path / "m", tmp_path)
    batch = fitted(runnable, texts=TEXTS).batch(range(12))
    with torch.no_grad():
        assert torch.allclose(runnable.forward(batch), model(**batch.inputs).logits, atol=0.05 if how == "half" else 1e-6)
    assert runnable.parameters["wte.weight" if how == "prefix" else "transformer.wte.weight"] is runnable.module.lm_head.weight
    if how == "bin":
        assert runnable.parameters["lm_head.weight"] is runnable.module.lm_head.weight


def test_a_classifier_without_padding_looks_at_each_samples_last_token(tmp_path):
    model = tiny_models.build("llama-classifier", tmp_path / "m")
    runnable = opened(tmp_path / "m", tmp_path)
    data = fitted(runnable, texts=TEXTS)
    with torch.no_grad():
        expected = torch.cat([model(torch.from_numpy(ids)[None]).logits for ids in data.tokens])
        assert torch.allclose(runnable.forward(data.batch(range(12))), expected, atol=1e-6)


def test_a_network_of_encoder_and_decoder_is_given_its_own_text(tmp_path):
    tiny_models.build("t5", tmp_path / "m")
    runnable = opened(tmp_path / "m", tmp_path)
    data = fitted(runnable, texts=TEXTS)
    with torch.no_grad():
        output = runnable.forward(data.batch([0, 1]))
    assert runnable.task == "seq2seq" and output.shape[::2] == (2, tiny_models.VOCABULARY)


def test_images(tmp_path):
    model = tiny_models.build("vit", tmp_path / "m", tokenizer=False)
    runnable = opened(tmp_path / "m", tmp_path)
    x = np.random.default_rng(0).random((9, 3, 8, 8), dtype=np.float32)
    data = fitted(runnable, arrays={"pixel_values": x}, labels=np.zeros(9, dtype=np.int64))
    with torch.no_grad():
        assert torch.equal(runnable.forward(data.batch([3])), model(torch.from_numpy(x[3:4])).logits)


HOSTILE = {
    "num_hidden_layers": 10**9, "hidden_size": 1 << 40, "vocab_size": 10**12, "intermediate_size": 10**12, "num_attention_heads": 10**9,
    "max_position_embeddings": 1 << 62, "hidden_act": "__import__('os')", "layer_norm_eps": "x",
}  # fmt: skip


@pytest.mark.parametrize("key", HOSTILE)
def test_numbers_that_do_not_agree_with_the_tensors_are_refused_at_once(tmp_path, key):
    tiny_models.build("bert", tmp_path / "m")
    tiny_models.edit_config(tmp_path / "m", **{key: HOSTILE[key]})
    started = time.monotonic()
    with pytest.raises(InputRefused) as e:
        opened(tmp_path / "m", tmp_path)
    assert e.value.type == "not-runnable" and time.monotonic() - started < 20


@pytest.mark.parametrize("kind, changes", [
    ("albert", {"inner_group_num": 10**9}),
    ("gpt2", {"model_type": "gpt_neo", "architectures": ["GPTNeoForCausalLM"], "num_layers": 2, "attention_types": [[["global"], 10**10]]}),
])  # fmt: skip
def test_a_network_that_is_never_done_is_broken_off(tmp_path, monkeypatch, kind, changes):
    for module in (architecture, weights):
        monkeypatch.setattr(module, "PATIENCE", 2.0)
    tiny_models.build(kind, tmp_path / "m")
    tiny_models.edit_config(tmp_path / "m", **changes)
    with pytest.raises(InputRefused, match="longer than 2 s") as e:
        opened(tmp_path / "m", tmp_path)
    assert e.value.type == "not-runnable"


@pytest.mark.parametrize(
    "changes, says",
    [
        ({"model_type": "unheard"}, "does not know the model_type 'unheard'"),
        ({"model_type": "unheard", "auto_map": {"AutoModel": "code.Model"}}, "is never run here"),
        ({"model_type": None}, "'None'"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantized already"),
        ({"architectures": ["BertForSequenceClassification"], "num_labels": 2}, "not in the checkpoint"),
    ],
)
def test_what_transformers_cannot_run_is_refused_by_name(tmp_path, changes, says):
    tiny_models.build("bert", tmp_path / "m")
    tiny_models.edit_config(tmp_path / "m", **changes)
    with pytest.raises(InputRefused, match=says) as e:
        opened(tmp_path / "m", tmp_path)
    assert e.value.type == "not-runnable" and "needed is" in e.value.detail


def test_code_beside_a_known_architecture_is_not_run(tmp_path):
    tiny_models.build("bert", tmp_path / "m")
    tiny_models.edit_config(tmp_path / "m", auto_map={"AutoModel": "code.Model", "AutoConfig": "code.Config"})
    (tmp_path / "m" / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Model: pass\nclass Config: pass\n")
    assert opened(tmp_path / "m", tmp_path).task == "encoder" and not (tmp_path / "ran").exists()


def test_weights_alone_are_refused(tmp_path):
    tiny_models.build("bert", tmp_path / "m")
    (tmp_path / "m" / "config.json").unlink()
    with pytest.raises(InputRefused, match="no config.json"):
        opened(tmp_path / "m", tmp_path)


def test_weights_of_another_network_are_refused(tmp_path):
    tiny_models.build("llama", tmp_path / "m")
    save_file({"a.weight": torch.ones(4, 4)}, tmp_path / "m" / "model.safetensors")
    with pytest.raises(InputRefused) as e:
        opened(tmp_path / "m", tmp_path)
    assert e.value.type == "not-runnable"


@pytest.mark.parametrize("text", ["{}", "not json", json.dumps({"model": {"type": "BPE", "vocab": {"a": 1 << 80}}}), json.dumps({"added_tokens": 1})])
def test_a_tokenizer_that_is_none_is_refused(tmp_path, text):
    tiny_models.build("bert", tmp_path / "m")
    (tmp_path / "m" / "tokenizer.json").write_text(text)
    with pytest.raises(InputRefused, match="tokenizer.json"):
        opened(tmp_path / "m", tmp_path)


@pytest.mark.parametrize("name, layers", [("bert", 2), ("classifier", 2), ("llama", 2), ("gpt2", 2), ("t5", 2), ("vit", 2), ("mixtral", 2)])
def test_it_tells_what_each_layer_hands_on(tmp_path, name, layers):
    tiny_models.build(name, tmp_path / "m")
    runnable = opened(tmp_path / "m", tmp_path)
    arrays = {"pixel_values": np.random.default_rng(0).normal(size=(12, 3, 8, 8)).astype(np.float32)}
    batch = fitted(runnable, **({"arrays": arrays} if name == "vit" else {"texts": TEXTS})).batch(range(12))
    with torch.no_grad():
        told = runnable.features(batch)
        assert torch.equal(told.output, runnable.forward(batch))
    assert len(told.hidden) == layers and all(h.ndim == 3 and h.shape[-1] == 16 for h in told.hidden)
    if name == "bert":
        pooled = torch.nn.functional.normalize(torch.stack([h[m].mean(0) for h, m in zip(told.hidden[-1], batch.mask, strict=True)]), dim=-1)
        assert torch.allclose(pooled, told.output, atol=1e-6)


@pytest.mark.parametrize("changes", [
    {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": r"^(([a-z])+.)+[A-Z]([a-z])+$"}, "behavior": "Isolated", "invert": False}},
    {"pre_tokenizer": {"type": "FixedLength", "length": 0}},
])  # fmt: skip
def test_a_tokenizer_that_fails_on_a_text_is_refused(tmp_path, changes):
    tiny_models.build("bert", tmp_path / "m")
    path = tmp_path / "m" / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(InputRefused, match="does not take 'www") as e:
        fitted(opened(tmp_path / "m", tmp_path), texts=["w" * 100] * 9)
    assert e.value.type == "not-runnable"


def test_a_long_text_is_tokenized_as_far_as_it_is_read(tmp_path):
    tiny_models.build("bert", tmp_path / "m")
    started = time.monotonic()
    data = fitted(opened(tmp_path / "m", tmp_path), texts=["w1 " * 10_000_000, *TEXTS])
    assert len(data.tokens[0]) == 32 and time.monotonic() - started < 10
