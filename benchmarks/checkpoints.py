"""Checkpoints to measure on: Llama-shaped, of any size, with heavy channels as real models have them. Written tensor by tensor."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import NamedTuple

import torch

class Widths(NamedTuple):
    hidden: int = 2048
    intermediate: int = 5632
    vocabulary: int = 32000


def shapes(layers: int, widths: Widths = Widths()) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a Llama with `layers` blocks (of 51 M weights each by default), embeddings and head beside them."""
    hidden, intermediate, vocabulary = widths
    out = {"model.embed_tokens.weight": (vocabulary, hidden)}
    for i in range(layers):
        p = f"model.layers.{i}."
        for name in ("q", "k", "v", "o"):
            out[f"{p}self_attn.{name}_proj.weight"] = (hidden, hidden)
        out[f"{p}mlp.gate_proj.weight"] = out[f"{p}mlp.up_proj.weight"] = (intermediate, hidden)
        out[f"{p}mlp.down_proj.weight"] = (hidden, intermediate)
        out[f"{p}input_layernorm.weight"] = out[f"{p}post_attention_layernorm.weight"] = (hidden,)
    return out | {"model.norm.weight": (hidden,), "lm_head.weight": (vocabulary, hidden)}


def llama(folder: Path, nbytes: int, seed: int = 0, widths: Widths = Widths()) -> Path:
    """Write `folder/model.safetensors` (bf16, about `nbytes`) and its config.json; N(0, 0.02), every 64th input channel ten times heavier.

    Returns:
        the folder.
    """
    hidden, intermediate, vocabulary = widths
    layers = max(1, round((nbytes / 2 - 2 * vocabulary * hidden) / (4 * hidden**2 + 3 * hidden * intermediate)))
    tensors, header, at = shapes(layers, widths), {}, 0
    for name, shape in tensors.items():
        size = 2 * torch.Size(shape).numel()
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    generator = torch.Generator().manual_seed(seed)
    with (folder / "model.safetensors").open("wb") as f:
        f.write(struct.pack("<Q", len(text)) + text)
        for shape in tensors.values():
            w = torch.randn(shape, generator=generator) * 0.02
            if len(shape) == 2:
                w[:, ::64] *= 10
            f.write(w.bfloat16().view(torch.uint8).numpy().tobytes())
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": hidden, "intermediate_size": intermediate, "num_hidden_layers": layers,
        "num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": vocabulary, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    return folder
