"""Feed-forward layers made narrower: of every family that is known the folder loads in transformers, and computes what the model computes whose removed
units are silenced by hand."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny_models
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from app.errors import ConflictingSteps, InputRefused, InvalidJobSpec, NoTensorMatched
from app.job_spec import parse_job
from app.recipe import parse_recipe
from worker import measuring, pipeline
from worker.formats import open_checkpoint
from worker.kernels.units import sums
from worker.narrowing import narrow
from worker.recovering import Recovery
from worker.restore import restore
from worker.statistics import Statistics

ANY_ID = "00000000-0000-0000-0000-000000000000"
BERT = {"vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24, "max_position_embeddings": 32}
LLAMA = BERT | {"num_key_value_heads": 1, "head_dim": 8}
GPT = {"vocab_size": 60, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32, "bos_token_id": 1, "eos_token_id": 2}
BART = {
    "vocab_size": 60, "d_model": 16, "encoder_layers": 1, "decoder_layers": 2, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
    "encoder_ffn_dim": 24, "decoder_ffn_dim": 40, "max_position_embeddings": 32, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
T5 = {"vocab_size": 60, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2, "decoder_start_token_id": 0}
OPT = {"vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "ffn_dim": 24, "max_position_embeddings": 32, "word_embed_proj_dim": 16}
TOWER = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
CLIP = {
    "text_config": TOWER | {"vocab_size": 60, "intermediate_size": 24, "max_position_embeddings": 32, "bos_token_id": 1, "eos_token_id": 2},
    "vision_config": TOWER | {"intermediate_size": 40, "image_size": 8, "patch_size": 4}, "projection_dim": 8,
}  # fmt: skip
WAV = {
    "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24, "conv_dim": (8, 8), "conv_stride": (2, 2), "conv_kernel": (3, 3),
    "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2,
}  # fmt: skip

FAMILIES = {
    "BertModel": BERT, "RobertaModel": BERT, "MPNetModel": BERT, "ElectraModel": BERT | {"embedding_size": 16}, "AlbertModel": BERT | {"embedding_size": 8},
    "DebertaV2Model": BERT, "DistilBertModel": {"vocab_size": 60, "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24, "max_position_embeddings": 32},
    "ViTModel": {k: v for k, v in BERT.items() if k != "vocab_size"} | {"image_size": 8, "patch_size": 4},
    "ModernBertModel": BERT | {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2},
    "LlamaForCausalLM": LLAMA, "MistralForCausalLM": LLAMA, "Qwen2ForCausalLM": LLAMA, "Gemma2ForCausalLM": LLAMA, "Phi3ForCausalLM": LLAMA | {"pad_token_id": 0},
    "NemotronForCausalLM": LLAMA, "GPT2LMHeadModel": GPT, "GPTJForCausalLM": GPT | {"rotary_dim": 4},
    "GPTNeoForCausalLM": {"vocab_size": 60, "hidden_size": 16, "num_layers": 2, "num_heads": 2, "attention_types": [[["global"], 2]], "max_position_embeddings": 32},
    "GPTNeoXForCausalLM": BERT, "OPTForCausalLM": OPT, "PhiForCausalLM": BERT, "Starcoder2ForCausalLM": LLAMA, "FalconForCausalLM": BERT,
    "T5ForConditionalGeneration": T5, "MT5ForConditionalGeneration": T5 | {"feed_forward_proj": "gated-gelu"}, "BartForConditionalGeneration": BART,
    "CLIPModel": CLIP, "Wav2Vec2Model": WAV,
}  # fmt: skip


def build(folder: Path, family: str) -> transformers.PreTrainedModel:
    torch.manual_seed(0)
    cls = getattr(transformers, family)
    model = cls(cls.config_class(**FAMILIES[family])).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(0, 0.3)
    model.save_pretrained(folder)
    return model


def said(model: transformers.PreTrainedModel) -> list[torch.Tensor]:
    """Its outputs on fixed inputs."""
    drawn = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 60, (2, 7), generator=drawn)
    pixels, sound = torch.randn(2, 3, 8, 8, generator=drawn), torch.randn(2, 200, generator=drawn)
    inputs = {
        "ViTModel": {"pixel_values": pixels}, "CLIPModel": {"input_ids": ids, "pixel_values": pixels}, "Wav2Vec2Model": {"input_values": sound},
        "T5ForConditionalGeneration": {"input_ids": ids, "decoder_input_ids": ids}, "MT5ForConditionalGeneration": {"input_ids": ids, "decoder_input_ids": ids},
        "BartForConditionalGeneration": {"input_ids": ids, "decoder_input_ids": ids},
    }.get(type(model).__name__, {"input_ids": ids})  # fmt: skip
    with torch.no_grad():
        out = model(**inputs)
    return [v for v in out.values() if isinstance(v, torch.Tensor)]


def run(folder: Path, out: Path, step: dict | None = None, steps: list | None = None, beside: dict | None = None, **more) -> dict:
    """The whole pipeline; its report."""
    out.mkdir()
    body = {"input": ANY_ID, "recipe": {"steps": steps or [{"method": "prune", "mask_structure": "ffn-width"} | (step or {})]}} | more
    if beside:
        body |= {"gradients": ANY_ID}
    pipeline.run(folder, out, parse_job(body).model_dump(mode="json") | {"beside": {k: str(v) for k, v in (beside or {}).items()}}, lambda event: None)
    return json.loads((out / "report.json").read_text())


def silenced(folder: Path, cls: type, tmp: Path, sparsity: float) -> transformers.PreTrainedModel:
    """The model as it was, but what its weights down take in from the units that are to go is zero."""
    checkpoint = open_checkpoint(folder, tmp)
    left, _, _ = narrow(checkpoint, parse_recipe({"steps": [{"method": "prune", "mask_structure": "ffn-width", "sparsity": sparsity}]}), tmp)
    weights = load_file(folder / "model.safetensors")
    for name, shrunk in left.shrunk.items():
        if shrunk.cut.side.inner:
            gone = torch.ones(shrunk.cut.before, dtype=torch.bool)
            gone[shrunk.places] = False
            weights[name].movedim(shrunk.cut.side.dim, 0)[gone] = 0
    checkpoint.close()
    shutil.copytree(folder, tmp / "silenced")
    save_file(weights, tmp / "silenced" / "model.safetensors", {"format": "pt"})
    return cls.from_pretrained(tmp / "silenced").eval()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_folder_loads_and_says_what_the_silenced_model_says(family, tmp_path):
    folder, out = tmp_path / "model", tmp_path / "out"
    model = build(folder, family)
    report = run(folder, out, {"sparsity": 0.4})
    narrowed, info = type(model).from_pretrained(out / "files", output_loading_info=True)
    assert not info["missing_keys"] and not info["mismatched_keys"] and not info["unexpected_keys"]
    assert sum(p.numel() for p in narrowed.parameters()) < sum(p.numel() for p in model.parameters())
    for ours, wanted in zip(said(narrowed.eval()), said(silenced(folder, type(model), tmp_path, 0.4)), strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-4, atol=1e-4)
    changed = [t for t in report["tensors"] if t["action"] == "pruned"]
    assert changed and all(t["units"]["after"] == t["units"]["before"] - math.floor(0.4 * t["units"]["before"]) for t in changed)
    stored = load_file(out / "files" / "model.safetensors")
    assert all(list(stored[t["name"]].shape) == t["shape_after"] for t in changed)
    assert report["width"]["parameters_after"] == sum(t.numel() for t in stored.values())
    assert report["width"]["parameters_before"] == sum(math.prod(t["shape"]) for t in report["tensors"])


def test_experts_are_refused(tmp_path):
    cls = transformers.MixtralForCausalLM
    cls(cls.config_class(**LLAMA, num_local_experts=2, num_experts_per_tok=1)).save_pretrained(tmp_path / "model")
    with pytest.raises(InputRefused, match="mixture of experts"):
        run(tmp_path / "model", tmp_path / "out")


def test_what_cannot_be_narrowed_says_what_would_work(tmp_path):
    folder = tmp_path / "model"
    build(folder, "BertModel")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 99}))
    with pytest.raises(InputRefused, match="intermediate_size: 99.*channel") as refused:
        run(folder, tmp_path / "a")
    assert (refused.value.type, refused.value.pointer) == ("not-narrowable", "/recipe/steps/0/mask_structure")
    (folder / "config.json").unlink()
    (folder / "notes.txt").write_text("x")
    with pytest.raises(InputRefused, match="config.json") as refused:
        run(folder, tmp_path / "b")
    assert refused.value.type == "missing-config"
    bare = tmp_path / "bare"
    bare.mkdir()
    save_file({"a.weight": torch.randn(8, 8)}, bare / "model.safetensors")
    (bare / "config.json").write_text("{}")
    with pytest.raises(InputRefused, match="no feed-forward layer is known among 1 tensors"):
        run(bare, tmp_path / "c")


def test_some_layers_that_share_a_number_are_refused_and_stacks_are_apart(tmp_path):
    folder = tmp_path / "model"
    build(folder, "BertModel")
    with pytest.raises(InvalidJobSpec, match="1 of 2 layers"):
        run(folder, tmp_path / "a", {"targets": ["*layer.0.*"]})
    with pytest.raises(NoTensorMatched, match="none of 2"):
        run(folder, tmp_path / "b", {"targets": ["*pooler*"]})
    bart = tmp_path / "bart"
    build(bart, "BartForConditionalGeneration")
    report = run(bart, tmp_path / "c", {"targets": ["*decoder*"], "sparsity": 0.75})
    assert report["width"]["config"] == {"decoder_ffn_dim": {"before": 40, "after": 10}}
    steps = [{"method": "prune", "mask_structure": "ffn-width", "targets": ["*decoder*"]}, {"method": "prune", "mask_structure": "ffn-width", "targets": ["*"]}]
    with pytest.raises(ConflictingSteps):
        run(bart, tmp_path / "d", steps=steps)


def test_weights_that_are_not_finite_are_refused(tmp_path):
    folder = tmp_path / "model"
    build(folder, "BertModel")
    weights = load_file(folder / "model.safetensors")
    weights["encoder.layer.1.output.dense.weight"][3, 4] = math.nan
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(InputRefused, match="layer.1.output.dense.weight"):
        run(folder, tmp_path / "out")


def test_packed_restores_the_narrowed_folder(tmp_path):
    folder = tmp_path / "model"
    build(folder, "LlamaForCausalLM")
    a = run(folder, tmp_path / "a", {"sparsity": 0.5}, output={"format": "safetensors"})
    b = run(folder, tmp_path / "b", {"sparsity": 0.5}, output={"format": "packed"})
    assert a["width"] == b["width"] and b["totals"]["bytes_after"] < a["totals"]["bytes_after"]
    again = tmp_path / "again"
    restore(tmp_path / "b" / "files", tmp_path, again, lambda n: None)
    wanted, got = (load_file(f / "model.safetensors") for f in (tmp_path / "a" / "files", again))
    assert wanted.keys() == got.keys() and all(torch.equal(wanted[n], got[n]) for n in wanted)
    assert json.loads((again / "config.json").read_text())["intermediate_size"] == 12
    transformers.LlamaForCausalLM.from_pretrained(again)


def test_other_steps_work_on_what_is_left(tmp_path):
    folder = tmp_path / "model"
    build(folder, "LlamaForCausalLM")
    steps = [{"method": "prune", "mask_structure": "ffn-width"}, {"method": "prune", "sparsity": 0.5}, {"method": "quantize", "num_bits": 8}]
    report = run(folder, tmp_path / "out", steps=steps)
    assert report["output"]["format"] == "compressed-tensors"
    rows = {t["name"]: t for t in report["tensors"]}
    down = rows["model.layers.0.mlp.down_proj.weight"]
    assert (down["action"], down["shape"], down["shape_after"]) == ("quantized", [16, 24], [16, 12]) and down["sparsity"] >= 0.75
    assert "shape_after" not in rows["model.layers.0.self_attn.q_proj.weight"]
    config = json.loads((tmp_path / "out" / "files" / "config.json").read_text())
    assert config["intermediate_size"] == 12 and config["quantization_config"]["quant_method"] == "compressed-tensors"


def uploaded(folder: Path, path: Path, keep=lambda name: True) -> Path:
    """Gradients as a user may bring them."""
    drawn = torch.Generator().manual_seed(3)
    weights = load_file(folder / "model.safetensors")
    path.mkdir()
    save_file({n: torch.randn(t.shape, generator=drawn) for n, t in weights.items() if keep(n)}, path / "g.safetensors")
    return path


@pytest.mark.parametrize("saliency", ["magnitude", "gradient", "taylor", "fisher"])
@pytest.mark.parametrize("norm", ["l1", "l2"])
@pytest.mark.parametrize("biases", [True, False])
def test_units_are_ranked_as_a_slow_sum_does(tmp_path, saliency, norm, biases):
    folder = tmp_path / "model"
    build(folder, "BertModel")
    beside = {"gradients": uploaded(folder, tmp_path / "g", lambda n: biases or n.endswith("weight"))}
    run(folder, tmp_path / "out", {"saliency": saliency, "norm": norm}, beside=beside)
    w = {n: t.double().numpy() for n, t in load_file(folder / "model.safetensors").items()}
    g = {n: t.double().numpy() for n, t in load_file(tmp_path / "g" / "g.safetensors").items()}
    left = load_file(tmp_path / "out" / "files" / "model.safetensors")

    def value(name: str, *at: int) -> float:
        x, y = abs(w[name][at]), abs(g[name][at]) if saliency != "magnitude" else 0
        base = {"magnitude": x, "gradient": y, "taylor": x * y, "fisher": x * x * y * y}[saliency]
        return base if norm == "l1" else base * base

    for layer in range(2):
        up, down = (f"encoder.layer.{layer}.{part}.dense" for part in ("intermediate", "output"))
        scores = []
        for u in range(24):
            total = sum(value(f"{up}.weight", u, i) + value(f"{down}.weight", i, u) for i in range(16))
            scores.append(total + (value(f"{up}.bias", u) if biases or saliency == "magnitude" else 0))
        kept = sorted(np.argsort(np.array(scores), kind="stable")[12:])
        assert np.array_equal(left[f"{up}.weight"].numpy(), w[f"{up}.weight"][kept].astype("f4"))
        assert np.array_equal(left[f"{up}.bias"].numpy(), w[f"{up}.bias"][kept].astype("f4"))
        assert np.array_equal(left[f"{down}.weight"].numpy(), w[f"{down}.weight"][:, kept].astype("f4"))


def test_where_no_gradient_reaches_magnitude_decides(tmp_path):
    folder = tmp_path / "model"
    build(folder, "BertModel")
    weights = load_file(folder / "model.safetensors")
    (tmp_path / "g").mkdir()
    save_file({n: torch.zeros_like(t) if "layer.1" in n else torch.ones_like(t) for n, t in weights.items()}, tmp_path / "g" / "g.safetensors")
    report = run(folder, tmp_path / "a", {"saliency": "gradient"}, beside={"gradients": tmp_path / "g"})
    assert any("layer.1" in note and "magnitude" in note for note in report["notes"])
    run(folder, tmp_path / "b", {"saliency": "magnitude"})
    a, b = (load_file(tmp_path / x / "files" / "model.safetensors") for x in "ab")
    assert torch.equal(a["encoder.layer.1.output.dense.weight"], b["encoder.layer.1.output.dense.weight"])
    assert not torch.equal(a["encoder.layer.0.output.dense.weight"], b["encoder.layer.0.output.dense.weight"])


def test_statistics_follow_the_tensors(tmp_path):
    """A later step that weighs by gradients has those of the weights that are left."""
    folder = tmp_path / "model"
    build(folder, "GPT2LMHeadModel")
    beside = {"gradients": uploaded(folder, tmp_path / "g", lambda n: n.endswith("weight"))}
    width = {"method": "prune", "mask_structure": "ffn-width", "saliency": "fisher"}
    half = {"method": "prune", "saliency": "fisher", "sparsity": 0.5}
    plain = {"output": {"format": "safetensors"}}
    run(folder, tmp_path / "both", steps=[width, half], beside=beside, **plain)
    run(folder, tmp_path / "one", steps=[width], beside=beside)
    checkpoint = open_checkpoint(folder, tmp_path)
    _, statistics, _ = narrow(checkpoint, parse_recipe({"steps": [width]}), tmp_path, Statistics.open(tmp_path / "g"))
    (tmp_path / "g2").mkdir()
    save_file({n: statistics.absolute(n) for n in statistics.names}, tmp_path / "g2" / "g.safetensors")
    checkpoint.close()
    run(tmp_path / "one" / "files", tmp_path / "two", steps=[half], beside={"gradients": tmp_path / "g2"}, **plain)
    a, b = (load_file(tmp_path / x / "files" / "model.safetensors") for x in ("both", "two"))
    assert all(torch.equal(a[n], b[n]) for n in a)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 9), st.integers(1, 7), st.integers(1, 3), st.integers(0, 1), st.sampled_from(["l1", "l2"]), st.integers(0, 99))
def test_sums_over_units_on_odd_shapes(units, others, blocks, dim, norm, seed):
    drawn = torch.Generator().manual_seed(seed)
    w = torch.randn((blocks * units, others) if dim == 0 else (others, blocks * units), generator=drawn)
    g = torch.randn(w.shape, generator=drawn).square()
    rows = (w if dim == 0 else w.T).double().numpy()
    weights = (g if dim == 0 else g.T).double().numpy()
    for kind, of in (("magnitude", np.abs(rows) if norm == "l1" else rows**2), ("taylor", np.abs(rows) * weights if norm == "l1" else rows**2 * weights)):
        wanted = [sum(of[b * units + u, i] for b in range(blocks) for i in range(others)) for u in range(units)]
        np.testing.assert_allclose(sums(w, g, kind, norm, dim, blocks).numpy(), wanted, rtol=1e-12)


@pytest.mark.slow
def test_training_makes_up_for_what_is_gone(tmp_path):
    """By distillation from the model as it was; all weights move, and the result loads."""
    folder = tmp_path / "model"
    tiny_models.build("bert", folder)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "lines.txt").write_text("\n".join(tiny_models.texts(120)))
    width = {"method": "prune", "mask_structure": "ffn-width", "saliency": "fisher"}
    beside = {"gradients": str(uploaded(folder, tmp_path / "g", lambda n: n.endswith("weight"))), "calibration": str(tmp_path / "data")}

    def made(name: str, step: dict) -> dict:
        out = tmp_path / name
        out.mkdir()
        spec = parse_job({"input": ANY_ID, "recipe": {"steps": [step]}, "gradients": ANY_ID, "calibration": ANY_ID}).model_dump(mode="json") | {"beside": beside}
        recovery = Recovery(folder, out, spec, lambda event: None) if "recover" in step else None
        pipeline.run(folder, out, spec, lambda event: None, recovery)
        report = out / "report.json"
        measured = out / "measured"
        measured.mkdir()
        measuring.run(out, measured, spec | {"beside": beside | {"original": str(folder)}}, lambda event: None)
        return json.loads(report.read_text()) | {"quality": json.loads((measured / "report.json").read_text())["quality"]}

    plain, trained = made("plain", width), made("trained", width | {"recover": {"steps": 60, "batch_size": 16}})
    assert plain["quality"]["measured"] and trained["quality"]["measured"]
    assert trained["quality"]["cosine"] > plain["quality"]["cosine"] + 0.01
    rows = {t["name"]: t for t in trained["tensors"]}
    assert rows["encoder.layer.0.output.dense.weight"]["action"] == "pruned" and rows["encoder.layer.0.output.dense.weight"]["shape_after"] == [16, 12]
    moved = rows["encoder.layer.0.attention.self.query.weight"]
    assert "trained" in moved["reason"] and moved["relative_error"] > 0
    assert rows["embeddings.word_embeddings.weight"]["relative_error"] == 0 and trained["recovery"][0]["steps_run"] > 0


def test_masks_without_training_stay_under_training_of_another_step(tmp_path):
    """prune as it is, then codebooks that are trained: what was pruned is zero in the result."""
    folder = tmp_path / "model"
    tiny_models.build("bert", folder)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "lines.txt").write_text("\n".join(tiny_models.texts(60)))
    beside = {"gradients": str(uploaded(folder, tmp_path / "g")), "calibration": str(tmp_path / "data")}
    steps = [{"method": "prune", "sparsity": 0.5}, {"method": "quantize", "mapping": "gradient", "num_bits": 4, "recover": {"steps": 10, "batch_size": 8}}]
    body = {"input": ANY_ID, "recipe": {"steps": steps}, "gradients": ANY_ID, "calibration": ANY_ID}
    spec = parse_job(body).model_dump(mode="json") | {"beside": beside}
    out = tmp_path / "out"
    out.mkdir()
    pipeline.run(folder, out, spec, lambda event: None, Recovery(folder, out, spec, lambda event: None))
    rows = {t["name"]: t for t in json.loads((out / "report.json").read_text())["tensors"]}
    assert rows["encoder.layer.0.output.dense.weight"]["sparsity"] >= 0.5
