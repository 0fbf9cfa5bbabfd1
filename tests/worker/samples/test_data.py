"""Batches: order, padding, labels."""

from __future__ import annotations

import numpy as np
import torch

from worker.samples.data import Data
from worker.samples.split import split

TOKENS = [np.arange(1, 2 + i % 4) for i in range(25)]


def test_tokens_are_padded_to_the_longest_of_their_batch():
    batch = Data(tokens=TOKENS, labels=np.arange(25), pad=7).batch([3, 0])
    assert batch.inputs["input_ids"].tolist() == [[1, 2, 3, 4], [1, 7, 7, 7]] and batch.mask.tolist() == [[True] * 4, [True, False, False, False]]
    assert batch.inputs["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 0, 0, 0]] and batch.labels.tolist() == [3, 0] and len(batch) == 2


def test_a_split_comes_in_order_and_whole():
    data = Data(tokens=TOKENS)
    batches = list(data.batches("fit", 4))
    assert [i for b in batches for i in b.positions] == split(25, "fit") and max(map(len, batches)) == 4 and batches[0].labels is None


def test_arrays_are_stacked_and_their_mask_is_theirs():
    ids, mask = np.arange(50).reshape(25, 2), np.tile([1, 0], (25, 1))
    batch = Data(arrays={"input_ids": ids, "attention_mask": mask}).batch([4, 2])
    assert batch.inputs["input_ids"].tolist() == [[8, 9], [4, 5]] and batch.mask.tolist() == [[True, False]] * 2
    assert Data(arrays={"input_ids": ids}).batch([0]).mask.all() and Data(arrays={"x": ids.astype("f4")}).batch([0]).mask is None
    assert batch.to(torch.device("cpu")).positions == (4, 2)
