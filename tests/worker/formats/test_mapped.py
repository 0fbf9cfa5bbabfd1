from __future__ import annotations

import gc
import os
from pathlib import Path

import pytest
import torch

from worker.formats.mapped import map_range


@pytest.fixture
def path(tmp_path) -> Path:
    path = tmp_path / "mapped.bin"
    path.write_bytes(bytes(range(256)) * 64)
    return path


def maps(path: Path) -> int:
    return sum(str(path) in line for line in Path("/proc/self/maps").read_text().splitlines())


def test_it_is_what_is_in_the_file(path):
    for offset, nbytes, dtype in ((0, 16, torch.uint8), (8, 64, torch.float32), (4096, 4096, torch.int64), (5000, 3, torch.uint8), (3, 8, torch.float32), (9, 0, torch.float32)):
        found = map_range(path, offset, nbytes, dtype)
        assert found.dtype == dtype and found.view(torch.uint8).tolist() == list(path.read_bytes()[offset : offset + nbytes])


def test_nothing_stays_mapped_and_nothing_open(path):
    before = len(os.listdir("/proc/self/fd"))
    many = [map_range(path, 0, 400, torch.float32) for _ in range(600)]
    assert maps(path) >= 1 and len(os.listdir("/proc/self/fd")) <= before + 1
    view = many[3][5:].reshape(5, -1)
    del many
    gc.collect()
    assert maps(path) == 1 and view[0, 0].item() == torch.tensor(list(range(20, 24)), dtype=torch.uint8).view(torch.float32).item()
    del view
    gc.collect()
    assert maps(path) == 0


def test_a_write_stays_here(path):
    kept = path.read_bytes()
    map_range(path, 0, 400, torch.uint8).zero_()
    assert path.read_bytes() == kept


def test_behind_the_end_there_is_nothing(path):
    with pytest.raises(ValueError):
        map_range(path, path.stat().st_size - 4, 8, torch.uint8)
