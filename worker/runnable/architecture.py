"""Which network a config.json names: decided without loading anything, and without any code but transformers' own."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import transformers

from app.limits import shown
from app.outline import TensorSpec
from worker.runnable.patience import patience
from worker.runnable.runnable import not_runnable

PATIENCE = 120.0
"""Seconds for a network to be made of a config.json, without its values: real ones take a few."""
_LOOPS = re.compile(r"^((n|num|encoder|decoder|num_encoder|num_decoder|num_hidden)_(layers?|blocks?|stages?)|depths?|layers)$", re.IGNORECASE)
_PARTS = re.compile(r"(layers?|blocks?|experts?|groups?|codebooks?|labels|heads?)$", re.IGNORECASE)
_DROPPED = frozenset({
    "auto_map", "torch_dtype", "dtype", "_name_or_path", "_commit_hash", "attn_implementation", "_attn_implementation", "_attn_implementation_internal",
    "_attn_implementation_autoset", "experts_implementation", "_experts_implementation", "gradient_checkpointing", "output_attentions", "output_hidden_states", "return_dict", "custom_pipelines",
    "transformers_weights", "torchscript", "fusion_config",
})  # fmt: skip
"""Of a config: where it came from, how to run it, and what may name code."""


class Architecture(NamedTuple):
    """`cls` is a PreTrainedModel, `task` one of `worker.runnable.runnable.TASKS`."""

    config: transformers.PreTrainedConfig
    cls: type
    task: str


def architecture(config: dict, tensors: Mapping[str, TensorSpec]) -> Architecture:
    """The class and the task of a config.json.

    Raises:
        InputRefused: not-runnable.
    """
    known = f"an architecture that transformers {transformers.__version__} knows"
    if config.get("quantization_config"):
        raise not_runnable("its weights are quantized already", "the model before that (`restore` gives it back)")
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in transformers.CONFIG_MAPPING:
        why = "; code that comes with a model is never run here" if config.get("auto_map") else ""
        raise not_runnable(f"transformers does not know the model_type {shown(str(model_type))}{why}", known)
    _agree(config, tensors)
    try:
        with patience(PATIENCE):
            parsed = transformers.CONFIG_MAPPING[model_type].from_dict({k: v for k, v in config.items() if k not in _DROPPED})
        cls, task = _choose(config, parsed)
    except MemoryError:
        raise
    except Exception as e:  # config classes are validated by libraries of their own, and some look for other models on the network
        raise broken(e) from e
    if cls is None:
        raise not_runnable(f"transformers has no network for {shown(str(config.get('architectures')))} of model_type {shown(model_type)}", known)
    return Architecture(parsed, cls, task)


def broken(e: BaseException):
    """The refusal for whatever the library says of a config or of inputs made for it."""
    return not_runnable(f"transformers refuses its config.json ({type(e).__name__}: {str(e)[:300]})", "a config.json that belongs to the weights")


def _agree(config: dict, tensors: Mapping[str, TensorSpec]) -> None:
    """Whatever a constructor would loop over is no more than the tensors show, so that a number in a text costs no time.

    Raises:
        InputRefused: not-runnable.
    """
    widest = max((n for spec in tensors.values() for n in spec.shape), default=0)
    for key, value in _integers(config):
        bound = len(tensors) if _LOOPS.search(key) else max(widest, len(tensors)) if _PARTS.search(key) else None
        if bound is not None and value > bound:
            raise not_runnable(f"its config.json has {shown(key)}: {value}, which its {len(tensors)} tensors do not bear out", "a config.json that belongs to the weights")


def _integers(value, key: str = "") -> Iterator[tuple[str, int]]:
    if isinstance(value, dict):
        for k, v in value.items():
            yield from _integers(v, str(k))
    elif isinstance(value, list):
        for v in value:
            yield from _integers(v, key)
    elif type(value) in (int, float) and value == value and abs(value) != float("inf") and value == int(value):
        yield key, int(value)


def _choose(config: dict, parsed: transformers.PreTrainedConfig) -> tuple[type | None, str]:
    cls = next(filter(None, map(_named, config.get("architectures") or [])), None)
    name = cls.__name__ if cls else ""
    if re.search("ForCausalLM$|LMHeadModel$", name):
        return cls, "causal-lm"
    if re.search("For(Sequence|Image|Audio|Video)Classification$", name):
        single = parsed.num_labels == 1 or getattr(parsed, "problem_type", None) == "regression"
        return cls, "regressor" if single else "classifier"
    if name.endswith("ForConditionalGeneration") and parsed.is_encoder_decoder:
        return cls, "seq2seq"
    if re.search("(Encoder|)Model$", name):
        return cls, "encoder"
    body = transformers.MODEL_MAPPING.get(type(parsed), None)
    return body[0] if isinstance(body, (list, tuple)) else body, "encoder"


def _named(name) -> type | None:
    if not isinstance(name, str) or not name.isidentifier():
        return None
    found = getattr(transformers, name, None)
    return found if isinstance(found, type) and issubclass(found, transformers.PreTrainedModel) else None
