"""A learned transform as a file, which stands beside the images that were coded with it and counts with them.

    "MPC1"  u8 channels  u16le rows  zlib of: rows x u8 coarse, rows x (64 * channels) x i16le matrix, the high bytes of all and then the low ones
"""

from __future__ import annotations

import struct
import zlib

import numpy as np

from worker.images.transform.basis import BLOCK, SCALE, Basis, of_matrix
from worker.images.transform.coding import Damaged

MAGIC = b"MPC1"
_HEAD = struct.Struct("<4sBH")


def dumped(basis: Basis) -> bytes:
    planes = basis.matrix.astype("<i2").reshape(-1).view(np.uint8).reshape(-1, 2).T[::-1]
    body = basis.coarse.astype(np.uint8).tobytes() + planes.tobytes()
    return _HEAD.pack(MAGIC, basis.channels, len(basis.matrix)) + zlib.compress(body, 9)


def loaded(data: bytes) -> Basis:
    """Raises: Damaged."""
    if len(data) < _HEAD.size:
        raise Damaged("the transform is cut off")
    magic, channels, rows = _HEAD.unpack_from(data)
    width = channels * BLOCK**2
    if magic != MAGIC or channels not in (1, 3) or not 1 <= rows <= width:
        raise Damaged("the transform is none of ours")
    size, stream = rows + 2 * rows * width, zlib.decompressobj()
    try:
        body = stream.decompress(data[_HEAD.size :], size + 1)
    except zlib.error as e:
        raise Damaged(str(e)) from None
    if len(body) != size or not stream.eof or stream.unused_data:
        raise Damaged("the transform has another size than it says")
    planes = np.frombuffer(body[rows:], np.uint8).reshape(2, -1)[::-1].T
    matrix = np.ascontiguousarray(planes).view("<i2").reshape(rows, width).astype(np.int16)
    coarse = np.frombuffer(body[:rows], np.uint8).astype(np.int64)
    if (np.abs(matrix.astype(np.int64)) > SCALE).any() or not coarse.all():
        raise Damaged("the transform has values that no such transform has")
    return of_matrix(matrix, coarse)
