"""Other libraries on the same matrices, each as the work of a row (`benchmarks.row`): weights in, weights as the library would have them, and the bits
that it stores for each, scales, zero points and masks counted.

    torch.nn.utils.prune    part of torch
    hqq, optimum-quanto, ggml (in xllamacpp)     by `pip install -e .[bench]`; what is not installed is not run, and the table says so
"""

from __future__ import annotations

import ctypes
import importlib.util
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.nn.utils import prune

GROUP = 64
"""Weights that share a scale and a zero point, float16 each: the libraries' own choice or near it."""


def missing(module: str, python: str = sys.executable) -> bool:
    """Args: python: of the environment that is asked."""
    if python != sys.executable:
        return subprocess.run([python, "-c", f"import importlib.util, sys; sys.exit(importlib.util.find_spec({module!r}) is None)"]).returncode != 0
    try:
        return importlib.util.find_spec(module) is None
    except ModuleNotFoundError:
        return True


def pruned(source: str, out: str, names: list[str], sparsity: float, scope: str) -> dict:
    """`l1_unstructured` on each tensor, or `global_unstructured` over all. Counted as float32 values of those kept, and one bit of mask for each weight."""
    layers = {name: _linear(w) for name, w in _read(source, names).items()}
    if scope == "global":
        prune.global_unstructured([(layer, "weight") for layer in layers.values()], pruning_method=prune.L1Unstructured, amount=sparsity)
    else:
        for layer in layers.values():
            prune.l1_unstructured(layer, "weight", sparsity)
    kept = sum(int(layer.weight_mask.sum()) for layer in layers.values())
    _write(out, {name: layer.weight for name, layer in layers.items()})
    return {"bits": 1 + 32 * kept / sum(layer.weight.numel() for layer in layers.values())}


def hqq(source: str, out: str, names: list[str], num_bits: int) -> dict:
    """Half-quadratic quantization (Badri and Shaji, 2023), by its own defaults along the inputs."""
    from hqq.core.quantize import Quantizer

    made = {}
    for name, w in _read(source, names).items():
        options = {"nbits": num_bits, "channel_wise": True, "group_size": GROUP, "optimize": True, "round_zero": num_bits == 4, "axis": 1, "bitpack": False}
        codes, meta = Quantizer.quantize(w, compute_dtype=torch.float32, device="cpu", **options)
        meta |= {part: meta[part].half().float() for part in ("scale", "zero")}
        made[name] = Quantizer.dequantize(codes, meta)
    _write(out, made)
    return {"bits": num_bits + 32 / GROUP}


def quanto(source: str, out: str, names: list[str], num_bits: int) -> dict:
    """By the library's own optimizer and quantization; decoded by its formula here, since its packing builds C++ at run time. 8 bits: a scale a row."""
    from optimum.quanto import AbsmaxOptimizer, MaxOptimizer, qint2, qint4, qint8
    from optimum.quanto.tensor import ungroup

    made, scales, count = {}, 0, 0
    for name, w in _read(source, names).items():
        count += w.numel()
        if num_bits == 8:
            scale = AbsmaxOptimizer()(w, qint8, 0).half().float()
            made[name] = torch.ops.quanto.quantize_symmetric(w, torch.int8, 0, scale).float() * scale
            scales += scale.numel()
            continue
        group = GROUP if w.shape[1] % GROUP == 0 else None
        scale, shift = MaxOptimizer()(w, {2: qint2, 4: qint4}[num_bits], 0, group)
        scale, shift = scale.half().float(), shift.half().float()
        codes = torch.ops.quanto.quantize_affine(w, bits=num_bits, axis=0, group_size=group, scale=scale, shift=shift)
        made[name] = ungroup(codes * scale - shift, axis=0, orig_shape=w.shape) if group else codes * scale - shift
        scales += scale.numel() + shift.numel()
    _write(out, made)
    return {"bits": num_bits + 16 * scales / count}


def ggml(source: str, kind: str) -> dict:
    """K-quants by ggml's own quantizer on this machine's processor, without an importance matrix, of every matrix of a layer. `kind`: Q2_K to Q6_K.

    Returns: `bits` a weight, the mean `relative_error`, `cpu` seconds in the quantizer.
    """
    number, nbytes = {"Q2_K": (10, 84), "Q3_K": (11, 110), "Q4_K": (12, 144), "Q5_K": (13, 176), "Q6_K": (14, 210)}[kind]
    library = ctypes.CDLL(str(next(Path(importlib.util.find_spec("xllamacpp").origin).parent.glob("*.so"))))
    quantize, restore = library.ggml_quantize_chunk, getattr(library, f"dequantize_row_{kind.lower().replace('_k', '_K')}")
    quantize.restype, quantize.argtypes = ctypes.c_size_t, [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, *[ctypes.c_int64] * 3, ctypes.c_void_p]
    restore.restype, restore.argtypes = None, [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
    total = count = cpu = 0
    with safe_open(source, "pt") as file:
        for name in (n for n in file.keys() if ".layers." in n and file.get_slice(n).get_shape()[1:]):
            w = file.get_tensor(name).float().contiguous()
            packed, decoded = torch.empty(w.numel() // 256 * nbytes, dtype=torch.uint8), torch.empty_like(w)
            start = time.process_time()
            quantize(number, w.data_ptr(), packed.data_ptr(), 0, *w.shape, None)
            cpu += time.process_time() - start
            restore(packed.data_ptr(), decoded.data_ptr(), w.numel())
            total += w.numel() * float((w - decoded).norm() / w.norm())
            count += w.numel()
    return {"bits": nbytes * 8 / 256, "relative_error": total / count, "cpu": cpu}


def ggml_file(source: str, out: str, kind: str) -> None:
    """From file to file, a tensor at a time, on two threads of rows: ggml's own quantizer on every matrix of a layer, the rest as it is. `kind`: Q8_0, Q4_0, Q4_K."""
    number, block, nbytes = {"Q4_0": (2, 32, 18), "Q8_0": (8, 32, 34), "Q4_K": (12, 256, 144)}[kind]
    library = ctypes.CDLL(str(next(Path(importlib.util.find_spec("xllamacpp").origin).parent.glob("*.so"))))
    quantize = library.ggml_quantize_chunk
    quantize.restype, quantize.argtypes = ctypes.c_size_t, [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, *[ctypes.c_int64] * 3, ctypes.c_void_p]
    threads = torch.get_num_threads()
    with safe_open(source, "pt") as file, ThreadPoolExecutor(threads) as pool, Path(out, "model.bin").open("wb") as target:
        for name in file.keys():
            t = file.get_tensor(name)
            if ".layers." not in name or t.dim() != 2:
                target.write(t.view(torch.uint8).numpy())
                continue
            w, packed = t.float(), torch.empty(t.numel() // block * nbytes, dtype=torch.uint8)
            step = -(-t.shape[0] // threads)

            def part(first: int, w=w, packed=packed, step=step) -> None:
                count = min(step, w.shape[0] - first)
                quantize(number, w.data_ptr(), packed.data_ptr(), first * w.shape[1], count, w.shape[1], None)

            list(pool.map(part, range(0, t.shape[0], step)))
            target.write(packed.numpy())


def quanto_file(source: str, out: str, num_bits: int) -> None:
    """From file to file: the library's own quantization of every matrix of a layer, and its own packing of 4 bits; the rest as it is."""
    from optimum.quanto import AbsmaxOptimizer, MaxOptimizer, qint4, qint8
    from optimum.quanto.tensor.packed import pack_weights

    made = {}
    with safe_open(source, "pt") as file:
        for name in file.keys():
            t = file.get_tensor(name)
            if ".layers." not in name or t.dim() != 2:
                made[name] = t
            elif num_bits == 8:
                made[name + ".scale"] = scale = AbsmaxOptimizer()(t, qint8, 0)
                made[name] = torch.ops.quanto.quantize_symmetric(t, torch.int8, 0, scale)
            else:
                made[name + ".scale"], made[name + ".shift"] = scale, shift = MaxOptimizer()(t, qint4, 0, 128)
                made[name] = pack_weights(torch.ops.quanto.quantize_affine(t, bits=4, axis=0, group_size=128, scale=scale, shift=shift), 4)
    save_file({name: t.contiguous() for name, t in made.items()}, Path(out, "model.safetensors"))


def _linear(w: torch.Tensor) -> torch.nn.Linear:
    layer = torch.nn.Linear(w.shape[1], w.shape[0], bias=False)
    layer.weight.data = w
    return layer


def _read(source: str, names: list[str]) -> dict[str, torch.Tensor]:
    tensors = load_file(Path(source))
    return {name: tensors[name].float() for name in names}


def _write(out: str, weights: dict[str, torch.Tensor]) -> None:
    save_file({name: w.detach().contiguous() for name, w in weights.items()}, Path(out))
