"""The feed-forward layers of Hugging Face models: which tensors are their two sides, and which number of config.json says how wide they are.

    h = act(x W_up^T + b_up)                      F hidden units: a row of W_up, an entry of b_up and a column of W_down each
    h = act(x W_gate^T) * (x W_up^T)              gated: a row of each of the two
    y = h W_down^T + b_down

They are told by the names of their modules and by shapes that fit. Linear weights are stored [out, in]; GPT-2's Conv1D [in, out].
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from app.errors import InputRefused
from app.limits import shown
from app.outline import Model, TensorSpec
from app.targets import CONV1D_MODELS, FLOATING


class _Names(NamedTuple):
    """Last parts of module names: what goes up (`fused`: gate and up, one below the other), what goes down again."""

    up: tuple[str, ...]
    down: str
    fused: int = 1


_FAMILIES = (
    _Names(("intermediate.dense",), "output.dense"),  # BERT, RoBERTa, MPNet, ELECTRA, DeBERTa, ViT
    _Names(("intermediate_dense",), "output_dense"),  # wav2vec 2.0, HuBERT
    _Names(("lin1",), "lin2"),  # DistilBERT
    _Names(("ffn",), "ffn_output"),  # ALBERT
    _Names(("gate_proj", "up_proj"), "down_proj"),  # Llama, Mistral, Qwen, Gemma
    _Names(("gate_up_proj",), "down_proj", 2),  # Phi-3, GLM
    _Names(("up_proj",), "down_proj"),  # Nemotron
    _Names(("c_fc",), "c_proj"),  # GPT-2, GPT-Neo, Starcoder
    _Names(("fc1",), "fc2"),  # OPT, Phi, BART, Whisper, CLIP
    _Names(("fc_in",), "fc_out"),  # GPT-J, CodeGen
    _Names(("dense_h_to_4h",), "dense_4h_to_h"),  # GPT-NeoX, Falcon
    _Names(("wi_0", "wi_1"), "wo"),  # T5 v1.1, mT5
    _Names(("wi",), "wo"),  # T5
    _Names(("Wi",), "Wo", 2),  # ModernBERT
)
_KNOWN = "intermediate.dense and output.dense, gate_proj, up_proj and down_proj, c_fc and c_proj, fc1 and fc2, wi and wo, and others as transformers names them"
_FIELDS = ("intermediate_size", "ffn_dim", "d_ff", "n_inner", "ffn_hidden_size", "hidden_dim")
_STACKS = ("encoder", "decoder")  # `encoder_ffn_dim` and `decoder_ffn_dim`
_FOUR_TIMES = {  # where the number is missing or null, it is four times the model's own width
    **dict.fromkeys(("gpt2", "gptj", "codegen", "gpt_bigcode", "imagegpt", "decision_transformer"), "n_inner"),
    "gpt_neo": "intermediate_size",
    "falcon": "ffn_hidden_size",
}
_WIDTHS = ("n_embd", "hidden_size")
_EXPERTS = re.compile(r"(^|[._])experts?([._]|$)", re.IGNORECASE)


class Side(NamedTuple):
    """A tensor of a feed-forward layer: units lie along `dim`, in `blocks` runs of F one after another. `inner`: they are what it takes in."""

    name: str
    dim: int
    blocks: int = 1
    inner: bool = False


@dataclass(frozen=True)
class FeedForward:
    """One layer. `sides`: its tensors that have a part of each of its `units`: weights up, their biases, the weight down."""

    name: str
    units: int
    sides: tuple[Side, ...]
    place: tuple[str, ...]  # of its width in config.json

    @property
    def weights(self) -> tuple[str, ...]:
        return tuple(s.name for s in self.sides if s.name.endswith(".weight"))


def find(model: Model, pointer: str | None = None) -> list[FeedForward]:
    """The feed-forward layers of a model, in the order of its tensors.

    Args:
        pointer: where a request asks for them.

    Raises:
        InputRefused: missing-config; not-narrowable (none is found, experts, a width that config.json does not say, tied tensors).
    """

    def refuse(why: str):
        raise InputRefused("not-narrowable", f"{why}; mask_structure channel keeps shapes and works on any layer", pointer=pointer)

    if model.config is None:
        raise InputRefused("missing-config", "ffn-width changes a number of config.json, and there is none beside the weights: upload the whole folder", pointer=pointer)
    if model.config.get("quantization_config"):
        refuse("the weights are quantized already")
    found = list(_layers(model.tensors, model.config.get("model_type") in CONV1D_MODELS))
    if experts := [n for n in model.tensors if _EXPERTS.search(n)]:
        refuse(f"the feed-forward layers are a mixture of experts ({shown(experts[0])}), whose widths are not changed here")
    if not found:
        some = ", ".join(shown(n) for n in list(model.tensors)[:5])
        refuse(f"no feed-forward layer is known among {len(model.tensors)} tensors ({some}); known are {_KNOWN}")
    tied = set(model.aliases.values())
    layers = []
    for name, units, sides in found:
        place = _place(model.config, name, units)
        if place is None:
            told = ", ".join(f"{path[-1]}: {value}" for path, value in _numbers(model.config)) or "none of them"
            refuse(f"{shown(name)} has {units} hidden units, which config.json should say as one of {', '.join(_FIELDS)}; it has {told}")
        if both := [s.name for s in sides if s.name in tied]:
            refuse(f"{shown(both[0])} is tied to another tensor")
        layers.append(FeedForward(name, units, sides, place))
    return layers


def _layers(tensors: Mapping[str, TensorSpec], conv1d: bool) -> Iterator[tuple[str, int, tuple[Side, ...]]]:
    taken = set()
    for name in tensors:
        for family in _FAMILIES:
            end = f"{family.down}.weight"
            prefix = name.removesuffix(end)
            if name in taken or prefix == name or (prefix and not prefix.endswith(".")):
                continue
            if (layer := _layer(tensors, prefix, family, conv1d and family.down == "c_proj")) is not None:
                taken.add(name)
                yield prefix + family.down, *layer


def _layer(tensors: Mapping[str, TensorSpec], prefix: str, family: _Names, conv1d: bool) -> tuple[int, tuple[Side, ...]] | None:
    """Units and sides of the layer below `prefix`; None where the tensors are not there, or do not fit."""
    out, into = (1, 0) if conv1d else (0, 1)
    down = tensors[f"{prefix}{family.down}.weight"]
    if len(down.shape) != 2 or down.dtype not in FLOATING or not (units := down.shape[into]):
        return None
    sides = []
    for module in family.up:
        weight, bias = tensors.get(f"{prefix}{module}.weight"), tensors.get(f"{prefix}{module}.bias")
        if weight is None or len(weight.shape) != 2 or weight.dtype not in FLOATING or weight.shape[out] != family.fused * units:
            return None
        sides.append(Side(weight.name, out, family.fused))
        if bias is not None:
            if bias.shape != (family.fused * units,) or bias.dtype not in FLOATING:
                return None
            sides.append(Side(bias.name, 0, family.fused))
    return units, (*sides, Side(down.name, into, inner=True))


def _place(config: Mapping[str, Any], name: str, units: int) -> tuple[str, ...] | None:
    """Where config.json says how wide the layer is: at its top, or in the part that the layer's name belongs to."""
    if (field := _field(config, name, units)) is not None:
        return (field,)
    parts = {k: v for k, v in config.items() if isinstance(v, dict) and (k.endswith("_config") or k in _STACKS)}
    places = [(k, field) for k, v in parts.items() if (field := _field(v, name, units)) is not None]
    named = [p for p in places if p[0].removesuffix("_config") in name]
    return next(iter(named), None) or (places[0] if len(places) == 1 else None)


def _field(config: Mapping[str, Any], name: str, units: int) -> str | None:
    stacks = [f"{s}_ffn_dim" for s in _STACKS if re.search(rf"(^|\.){s}\.", name)]
    for field in (*stacks, *_FIELDS):
        if type(config.get(field)) is int and config[field] == units:
            return field
    default = _FOUR_TIMES.get(str(config.get("model_type")))
    own = next((config[w] for w in _WIDTHS if type(config.get(w)) is int), None)
    return default if default and config.get(default) is None and own is not None and 4 * own == units else None


def _numbers(config: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], int]]:
    for key, value in config.items():
        if isinstance(value, dict) and not path:
            yield from _numbers(value, (key,))
        elif type(value) is int and (key in _FIELDS or key.endswith("_ffn_dim")):
            yield (*path, key), value


def by_place(layers: list[FeedForward]) -> dict[tuple[str, ...], list[FeedForward]]:
    """Layers that share a number of config.json."""
    groups = defaultdict(list)
    for layer in layers:
        groups[layer.place].append(layer)
    return dict(groups)


def kept(units: int, sparsity: float) -> int:
    """Hidden units that stay: all but floor(sparsity * units), so one at least."""
    return units - math.floor(sparsity * units)
