"""Which tensors a recipe works on, and how each is seen as a matrix [out, in]: decided by names, shapes and dtypes alone, so that an estimate
comes to the same decisions as the work itself.

Default targets (`["*"]`) are the weights of Linear, convolution and recurrent layers: floating, of rank 2 or more, named `*.weight` (`weight_ih`, `weight_hh`),
and neither an embedding nor an output head nor a norm nor a router, and the tensors of rank 3 that hold all experts of a layer (`app.experts`), each of which is
seen as so many matrices. Convolutions [O, I, ...] are seen as [O, rest]; these and experts go into `packed` only. Where no tensor has such a name, every matrix is
taken for a layer's. GPT-2's Conv1D is stored [in, out]. Patterns that a user
writes may name any floating tensor of rank 2 or more, embeddings and heads included. Whatever is left alone says why.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from app.errors import ConflictingSteps, InputRefused, NoTensorMatched
from app.experts import ASSUMED, Stack, stacks
from app.outline import TensorSpec
from app.recipe import Lossless, Quantize, Recipe, Step, Targeted, check_matched, matcher, narrows

if TYPE_CHECKING:
    from app.width import Cut

_DONE = {"prune": "pruned", "quantize": "quantized"}
FLOATING = ("F64", "F32", "F16", "BF16")
# A header may have tens of thousands of names of 512 characters: a pattern that looks on from each place of a name looks at its end alone (`_is`).
_EMBEDDING = re.compile(r"embed(ding|dings|der|s)?([._]|$)|(^|[._])(wte|wpe|shared(?!_)|relative_attention_bias)([._]|$)", re.IGNORECASE)
_HEAD = re.compile(r"(^|[._])(lm_head|embed_out|classifier|score|qa_outputs|cls|head|heads|logits|proj_out|output_projection)\.(\w+\.)*weight$|^output\.weight$", re.IGNORECASE)
_NORM = re.compile(r"(^|[._])(\w*norm\w*|ln_\w+|ln\d*|bn\d*)\.weight$", re.IGNORECASE)
_ROUTER = re.compile(r"(^|[._])(router|gate|shared_expert_gate)(\.(classifier|layer|wg))?\.weight$", re.IGNORECASE)
_WEIGHT = re.compile(r"(^|\.)weight(_[ih]h(_l\d+)?(_reverse)?)?$")  # of Linear and convolution layers, and of recurrent ones
_CONV1D = re.compile(r"(^|\.)(c_attn|c_proj|c_fc|q_attn)\.weight$")
CONV1D_MODELS = ("gpt2", "imagegpt", "decision_transformer", "openai-gpt", "clvp", "gpt_bigcode_v0")
TAKEN_APART = ("llama4", "llama4_text")
"""Models whose experts transformers replaces by layers of their own as soon as a model is quantized (`MODULES_TO_PATCH_FOR_QUANTIZATION`)."""
_BIAS = re.compile(r"(^|[._])bias$", re.IGNORECASE)  # of experts, [E, out]
_KINDS = ((_EMBEDDING, "an embedding"), (_HEAD, "an output head"), (_NORM, "a norm"), (_ROUTER, "a router"), (_BIAS, "a bias"))

_TELLING = 128  # characters at a name's end


def _is(kind: re.Pattern, name: str) -> bool:
    return kind.search(name, 0 if kind is _EMBEDDING else max(0, len(name) - _TELLING)) is not None


@dataclass
class Treatment:
    """What is to happen to one tensor.

    Args:
        steps: in the recipe's order, resolved for this tensor; empty when it is copied for `reason`.
        transposed: the tensor is stored [in, out] (GPT-2's Conv1D), each of its experts where it is of these.
        linear: it may be the weight of a Linear layer, changed or not.
        notes: what was resolved otherwise than asked.
        cut: how it shrinks first (`spec` is what is left); None where it keeps its shape.
        experts: whose matrices it holds, one below another where it is seen as one matrix; None of any other tensor.
    """

    spec: TensorSpec
    steps: list[Step]
    reason: str | None = None
    transposed: bool = False
    linear: bool = False
    notes: tuple[str, ...] = ()
    cut: Cut | None = None
    experts: int | None = None

    def step(self, cls: type) -> Step | None:
        return next((s for s in self.steps if isinstance(s, cls)), None)

    @property
    def quantize(self) -> Quantize | None:
        return self.step(Quantize)

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """As [out, in]; of rank 2 or more only. Of experts [E * out, in]."""
        if self.experts is not None:
            count, outputs, inputs = self.spec.shape
            return (count * inputs, outputs) if self.transposed else (count * outputs, inputs)
        outputs, *rest = self.spec.shape
        inputs = math.prod(rest)
        return (inputs, outputs) if self.transposed else (outputs, inputs)


def treat(
    tensors: Mapping[str, TensorSpec], config: dict | None, recipe: Recipe, output: str, cuts: Mapping[str, Cut] = MappingProxyType({})
) -> dict[str, Treatment]:
    """A treatment for every tensor, in their order. Steps that make tensors smaller have been there already.

    Args:
        cuts: of the tensors that they have made smaller.

    Raises:
        NoTensorMatched: a step works on nothing. ConflictingSteps: two steps of one kind meet in a tensor. InputRefused: see `_whole_groups`, `_experts_stay`.
    """
    check_matched(recipe, tensors)
    steps = [(step, matcher(step)) for step in recipe.steps if isinstance(step, Targeted) and not narrows(step)]
    named = any(_WEIGHT.search(name) for name in tensors)
    turned = (config or {}).get("model_type") in CONV1D_MODELS
    treatments, stacked = {}, stacks(tensors, config)
    for name, spec in tensors.items():
        chosen, reasons = [], []
        stack = stacked.get(name)
        transposed = stack.transposed if stack else turned and len(spec.shape) == 2 and _CONV1D.search(name) is not None
        for step, match in steps:
            why = _left_alone(spec, step, output, transposed, named, stack) if match(name) else "not targeted"
            (reasons.append(why) if why else chosen.append(step))
        kinds = [type(s) for s in chosen]
        if len(kinds) != len(set(kinds)):
            raise ConflictingSteps(f"two steps of one kind meet in {name}; give each its own targets")
        linear = len(spec.shape) == 2 and not transposed and spec.dtype in FLOATING and name.endswith(".weight") and not _EMBEDDING.search(name)
        reason = next(iter(reasons), None if chosen else "not targeted")
        treatments[name] = Treatment(spec, chosen, reason, transposed, linear, cut=cuts.get(name), experts=stack and stack.experts)
        if stack and (done := [_DONE[s.method] for s in chosen if s.method in _DONE]):
            treatments[name].notes = (f"{stack.experts} experts, each {' and '.join(done)} for itself", *(() if stack.told else (ASSUMED,)))
        if output == "compressed-tensors":
            _whole_groups(treatments[name])
    if output == "compressed-tensors" and stacked:
        _experts_stay(treatments, config, next(iter(stacked)))
    for i, step in enumerate(recipe.steps):
        if not any(step is s for s, _ in steps) or isinstance(step, Lossless):
            continue
        if not any(type(s) is type(step) and s.targets == step.targets for t in treatments.values() for s in t.steps):
            _refuse_idle(i, step, treatments)
    return treatments


def _experts_stay(treatments: Mapping[str, Treatment], config: dict | None, experts: str) -> None:
    """Experts that stay as they are beside quantized layers are found again by those who load the result.

    Raises:
        InputRefused: `not-representable`.
    """
    if (config or {}).get("model_type") in TAKEN_APART and any(t.quantize for t in treatments.values()):
        why = f"of a {config['model_type']} model under compressed-tensors transformers looks for every expert by itself, and would make up what is in {experts}"
        raise InputRefused("not-representable", f"{why}; choose packed, which carries it")


def _whole_groups(t: Treatment) -> None:
    """compressed-tensors carries whole groups only: a size that does not divide falls back to one scale per channel, by name.

    Raises:
        InputRefused: `not-representable`, under `strict`.
    """
    step = t.quantize
    if step is None or step.strategy != "group" or t.spec.shape[1] % step.group_size == 0:
        return
    why = f"group_size {step.group_size} does not divide the {t.spec.shape[1]} inputs of {t.spec.name}"
    if step.strict:
        raise InputRefused("not-representable", f"{why}; choose one that does, or packed, which carries a short last group")
    channel = step.model_copy(update={"strategy": "channel", "group_size": None})
    t.steps = [channel if s is step else s for s in t.steps]
    t.notes = (f"{why}: channel instead",)


def _refuse_idle(i: int, step: Step, treatments: dict[str, Treatment]) -> None:
    some = "; ".join(f"{n}: {p.reason}" for n, p in list(treatments.items())[:5])
    raise NoTensorMatched(f"step {i} ({step.method}) finds no tensor to work on among {len(treatments)} ({some}); name them in targets", pointer=f"/recipe/steps/{i}/targets")


def _left_alone(spec: TensorSpec, step: Step, output: str, transposed: bool, named: bool, stack: Stack | None) -> str | None:
    """Why a step does not work on a tensor that its patterns match; None when it does."""
    if isinstance(step, Lossless):
        return None
    if spec.dtype not in FLOATING:
        return f"{spec.dtype} is no floating type of 16 bits or more"
    if not spec.nbytes:
        return "it is empty"
    if len(spec.shape) < 2:
        return f"rank {len(spec.shape)}: no matrix"
    by_default = step.targets == ["*"]
    if by_default:
        if named and not _WEIGHT.search(spec.name) and not (stack and stack.known):
            return "not the weight of a layer; name it in targets to include it"
        for pattern, what in _KINDS:
            if _is(pattern, spec.name):
                return f"{what}; name it in targets to include it"
    if output == "compressed-tensors" and isinstance(step, Quantize):
        if stack:
            return f"compressed-tensors does not carry {stack.experts} experts in one tensor; packed does"
        linear = len(spec.shape) == 2 and not transposed and spec.name.endswith(".weight") and not _EMBEDDING.search(spec.name)
        return None if linear else "compressed-tensors carries Linear layers only; packed carries this too"
    return None
