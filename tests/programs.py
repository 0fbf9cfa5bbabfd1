"""Small programs of torch.export, made on the spot, and what can be done to their zips."""

from __future__ import annotations

import functools
import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

GOLDEN = Path(__file__).parent / "worker/formats/golden/mlp.pt2"
"""6 -> 5 -> 3 with a buffer and a batch of 1 to 1024, as torch 2.13 wrote it; its paths are of no machine."""


class Convolution(nn.Module):
    """A batch of exactly two images; a tied layer, a lifted constant, a dict of outputs."""

    example = (torch.zeros(2, 1, 8, 8),)
    options: dict = {}

    def __init__(self):
        super().__init__()
        self.c, self.norm, self.l = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Linear(36, 10)
        self.tied, self.k = self.l, torch.randn(3)

    def forward(self, x):
        y = nn.functional.max_pool2d(torch.relu(self.norm(self.c(x))), 2)
        z = self.l(y.flatten(1))
        return {"aux": z.sum() + self.k.sum(), "logits": z}


class Tokens(nn.Module):
    """Token ids, a free batch, a fixed length, a graph of its own without gradients, a constant argument, recurrence and attention."""

    example = (torch.zeros(3, 7, dtype=torch.int64),)
    options = {"kwargs": {"scale": 2.0}, "dynamic_shapes": {"ids": {0: torch.export.Dim("batch", min=1, max=64)}, "scale": None}}

    def __init__(self):
        super().__init__()
        self.emb, self.l, self.g, self.o = nn.Embedding(11, 6), nn.Linear(6, 6), nn.GRU(6, 5, batch_first=True), nn.Linear(5, 4)
        self.attention, self.relu = nn.MultiheadAttention(6, 2, batch_first=True), nn.ReLU(inplace=True)
        self.register_buffer("half_", torch.tensor(0.5), persistent=False)

    def forward(self, ids, *, scale=2.0):
        x = self.emb(ids)
        with torch.no_grad():
            norm = x.norm(dim=-1, keepdim=True)
        x = x / (norm + 1e-6) * scale + torch.einsum("btd,btd->bt", x, x).unsqueeze(-1)
        x = x + self.attention(x, x, x)[0]
        y, _ = self.g(self.relu(self.l(x) * self.half_))
        return self.o(y), [y]


class Branch(nn.Module):
    """Two inputs and two graphs of which one runs."""

    example = (torch.ones(2, 4), torch.ones(2, 3))
    options: dict = {}

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x, y):
        return torch.cond(x.sum() > 0, lambda x: self.a(x), lambda x: self.b(x), (x,)), y * 2


MODULES = {"convolution": Convolution, "tokens": Tokens, "branch": Branch}


@functools.cache
def exported(name: str) -> bytes:
    """A `.pt2` of one of MODULES; `mlp` is the golden one."""
    if name == "mlp":
        return GOLDEN.read_bytes()
    torch.manual_seed(7)
    cls = MODULES[name]
    buffer = io.BytesIO()
    torch.export.save(torch.export.export(cls().eval(), cls.example, **cls.options), buffer)
    return buffer.getvalue()


def members(data: bytes) -> tuple[str, dict[str, bytes]]:
    """The root folder of a zip, and what lies below it."""
    with zipfile.ZipFile(io.BytesIO(data)) as z:
        root = z.namelist()[0].split("/")[0]
        return root, {n.split("/", 1)[1]: z.read(n) for n in z.namelist()}


def zipped(root: str, found: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as z:
        for name, content in found.items():
            z.writestr(zipfile.ZipInfo(f"{root}/{name}"), content, compress_type=method)
    return out.getvalue()


def edited(data: bytes, edit: Callable[[dict], None], member: str = "models/model.json") -> bytes:
    """The same zip with one JSON member changed in place."""
    root, found = members(data)
    document = json.loads(found[member])
    edit(document)
    return zipped(root, found | {member: json.dumps(document).encode()})


def with_members(data: bytes, more: dict[str, bytes]) -> bytes:
    root, found = members(data)
    return zipped(root, found | more)


def nodes(document: dict) -> list[dict]:
    return document["graph_module"]["graph"]["nodes"]
