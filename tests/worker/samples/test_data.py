"""Batches: order, padding, labels."""

from __future__ import annotations

import numpy as np
import torch

from worker.samples.data import Batch, Data
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


def test_positions_that_count_are_the_decoders_own_where_it_is_given_a_text():
    mask = torch.tensor([[True, True, False], [True, True, True]])
    ids = torch.zeros(2, 3, dtype=torch.long)
    own = Batch({"input_ids": ids, "attention_mask": mask.long()}, mask, None, (0, 1))
    assert torch.equal(own.counted(torch.zeros(2, 3, 7)), mask)
    assert own.counted(torch.zeros(2, 5, 7)).all()  # of another number of positions nothing is said
    assert Batch({"pixels": torch.zeros(2, 4)}, None, None, (0, 1)).counted(torch.zeros(2, 3, 7)).all()
    for length in (3, 4):
        given = Batch(own.inputs | {"decoder_input_ids": torch.zeros(2, length, dtype=torch.long)}, mask, None, (0, 1))
        assert given.counted(torch.zeros(2, length, 7)).all()  # the mask is of another text, be it as long or not
        decoder = torch.arange(length).expand(2, length) < torch.tensor([[1], [2]])
        padded = Batch(given.inputs | {"decoder_attention_mask": decoder.long()}, mask, None, (0, 1))
        assert torch.equal(padded.counted(torch.zeros(2, length, 7)), decoder)


def test_rows_of_a_batch_are_its_samples():
    data = Data(tokens=[np.arange(n) for n in (3, 1, 4)], labels=np.array([5, 6, 7]))
    batch = data.batch([2, 0, 1])
    part = batch.rows(1, 3)
    assert part.positions == (0, 1) and part.labels.tolist() == [5, 6] and torch.equal(part.mask, batch.mask[1:])
    assert part.inputs.keys() == batch.inputs.keys() and torch.equal(part.inputs["input_ids"], batch.inputs["input_ids"][1:])
