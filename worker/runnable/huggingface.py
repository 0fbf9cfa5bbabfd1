"""A Hugging Face folder as a model that runs, by transformers' own code alone: no remote code, no network, weights from our readers."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial

import torch
import transformers
from torch import nn
from torch.nn.functional import normalize

from app.shards import join, main_folder
from worker.checkpoint import Checkpoint
from worker.runnable.architecture import Architecture, architecture
from worker.runnable.runnable import Features, Input, Runnable
from worker.runnable.tokens import MOST, open_tokenizer
from worker.runnable.weights import load, positions
from worker.samples.data import Batch

_INTEGERS = ("input_ids", "attention_mask", "token_type_ids", "position_ids", "decoder_input_ids", "decoder_attention_mask", "bbox")
_FLOATS = ("pixel_values", "input_features", "input_values", "inputs_embeds", "pixel_mask")


def open_huggingface(checkpoint: Checkpoint, device: torch.device) -> Runnable:
    """Raises: InputRefused: not-runnable."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    found = architecture(checkpoint.config, checkpoint.tensors)
    module, parameters = load(checkpoint, found)
    module.to(device)
    config = module.config
    config.use_cache = False
    takes = _inputs(module)
    text = "input_ids" in takes
    longest = min(positions(module, config) or MOST, MOST) if text else None
    path = checkpoint.files.get(join(main_folder(list(checkpoint.weight_files), checkpoint.files), "tokenizer.json"))
    tokenizer = open_tokenizer(path, longest) if text and path else None
    pad, vocabulary = getattr(config, "pad_token_id", None), takes["input_ids"].below if text else None
    valid = type(pad) is int and 0 <= pad < (vocabulary or 0)
    forward, watch = partial(_forward, module, found.task), partial(_watch, module, found.task)
    if text and found.task in ("classifier", "regressor") and not valid:
        forward, watch = partial(_one_by_one, forward), None
    classes = config.num_labels if found.task in ("classifier", "regressor") else None
    return Runnable(module, parameters, found.task, forward, takes, tokenizer, longest, pad if valid else 0, classes, watch, tokenizer.special if tokenizer else frozenset())


def _inputs(module: nn.Module) -> dict[str, Input]:
    """The arguments of its `forward` that data can be given for."""
    named = inspect.signature(module.forward).parameters
    embedding = _embedding(module)
    below = {"input_ids": embedding, "decoder_input_ids": embedding, "attention_mask": 2, "decoder_attention_mask": 2, "token_type_ids": getattr(module.config, "type_vocab_size", None)}
    main = module.main_input_name
    integers = {n: Input(torch.int64, (None,) if n != "bbox" else (None, 4), below.get(n), n == main) for n in _INTEGERS if n in named}
    return integers | {n: Input(torch.float32, None, None, n == main) for n in _FLOATS if n in named}


def _embedding(module: nn.Module) -> int | None:
    try:
        return module.get_input_embeddings().num_embeddings
    except (AttributeError, NotImplementedError):
        return getattr(module.config, "vocab_size", None)


def _forward(module: nn.Module, task: str, batch: Batch) -> torch.Tensor:
    return _output(task, _result(module, task, batch), batch)


def _watch(module: nn.Module, task: str, batch: Batch) -> Features:
    """With what each layer hands on (the first that is told is what the layers are given)."""
    result = _result(module, task, batch, output_hidden_states=True)
    told = [getattr(result, name, None) or () for name in ("hidden_states", "encoder_hidden_states", "decoder_hidden_states")]
    hidden = tuple(h for states in told for h in states[1:] if batch.mask is None or h.shape[:2] == batch.mask.shape)
    return Features(_output(task, result, batch), hidden)


def _result(module: nn.Module, task: str, batch: Batch, **options):
    """What the network says in its own words. A decoder is given the encoder's own text, one token late, so logits at t are of token t."""
    inputs = dict(batch.inputs)
    if task == "seq2seq" and "decoder_input_ids" not in inputs and "input_ids" in inputs:
        start = getattr(module.config, "decoder_start_token_id", None) or 0
        inputs["decoder_input_ids"] = torch.nn.functional.pad(inputs["input_ids"], (1, -1), value=start)
    return module(**inputs, **options)


def _output(task: str, result, batch: Batch) -> torch.Tensor:
    """Logits; of an encoder the mean of the last hidden state over unpadded tokens (or over all places of an image), of unit length."""
    if task != "encoder":
        return result.logits
    hidden = result.last_hidden_state
    if batch.mask is not None and hidden.shape[:2] == batch.mask.shape:
        weights = batch.mask.unsqueeze(-1).to(hidden.dtype)
        return normalize((hidden * weights).sum(1) / weights.sum(1).clamp(min=1), dim=-1)
    return normalize(hidden.mean(1) if hidden.ndim == 3 else hidden.flatten(2).mean(2) if hidden.ndim > 3 else hidden, dim=-1)


def _one_by_one(forward: Callable, batch: Batch) -> torch.Tensor:
    """Classifiers that look at the last token find it by the id of padding; without one, no sample is padded."""
    if batch.mask is None or len(batch) == 1:
        return forward(batch)
    outputs = []
    for row, mask in enumerate(batch.mask):
        inputs = {k: v[row : row + 1, mask] if v.shape[:2] == batch.mask.shape else v[row : row + 1] for k, v in batch.inputs.items()}
        outputs.append(forward(Batch(inputs, mask[mask][None], None, batch.positions[row : row + 1])))
    return torch.cat(outputs)
