"""The index's text in a packed file: short ones as one zstd frame with a dictionary, longer ones as a payload of kind bytes."""

from __future__ import annotations

import zstandard

from app.packed_dictionary import DICTIONARY
from worker.kernels.chunks import CorruptPayload

MAGIC = b"\x28\xb5\x2f\xfd"
SHORT = 1 << 16  # bytes of a text that a dictionary helps
_LEVEL = 19


def _dictionary() -> zstandard.ZstdCompressionDict:
    return zstandard.ZstdCompressionDict(DICTIONARY, dict_type=zstandard.DICT_TYPE_RAWCONTENT)


def to_frame(text: bytes) -> bytes:
    """A zstd frame with content size and checksum."""
    return zstandard.ZstdCompressor(level=_LEVEL, dict_data=_dictionary(), write_checksum=True, write_dict_id=False).compress(text)


def from_frame(data: memoryview, limit: int) -> bytes:
    """What a frame holds; its declared size is held against `limit` before the decoder allocates it.

    Raises:
        CorruptPayload: it is no frame, declares no size or a larger one, or its checksum does not hold.
    """
    try:
        frame = zstandard.get_frame_parameters(data)
        if frame.content_size > limit or not frame.has_checksum:
            raise CorruptPayload(f"a zstd frame declares {frame.content_size} bytes, {'with a' if frame.has_checksum else 'without'} checksum; at most {limit} with one")
        return zstandard.ZstdDecompressor(dict_data=_dictionary()).decompress(data, allow_extra_data=False)
    except zstandard.ZstdError as e:
        raise CorruptPayload(f"zstd: {e}") from None
