"""The bundle: one payload for the small tensors of a lossy result, since a payload of its own costs each some 150 bytes of heads and header.

A part of a tensor is a bare chunk in it, or nothing where it has no values. Here, and only here, values may be coded in contexts: that takes
microseconds a value where nothing is compiled, so the bundle holds at most 2^19 values in all: decoding it takes two or three seconds there, of the worst that can be forged a dozen.
"""

from __future__ import annotations

from worker.formats.packed_container import BUNDLE, Container
from worker.formats.packed_entries import BUNDLE_VALUES
from worker.formats.packed_parts import Part
from worker.kernels.chunks import encode_chunk

_SMALL = 1 << 14  # values of a tensor that belongs here whatever they are


class Bundle:
    """The payload as it grows, at most 4 MiB. `container` is what it will be appended to."""

    def __init__(self, container: Container):
        self.container, self.data, self.left = container, bytearray(), BUNDLE_VALUES

    def takes(self, parts: list[Part]) -> bool:
        """Whether a tensor belongs here: it fits into what is left, and is small, or entropy-coded and half of it or more is one value."""
        count = sum(len(p.values) for p in parts)
        if count > self.left or (count > _SMALL and not (parts[0].entropy and parts[0].sparse())):
            return False
        self.left -= count
        return True

    def add(self, part: Part) -> int:
        """Append a part. Returns its bytes."""
        if not (count := len(part.values)):
            return 0
        values = part.whole()
        data = encode_chunk(values, part.layout, part.entropy, part.columns)
        if not self.container.admit(part.layout, part.weight)(count, len(data)):
            data = encode_chunk(values, part.layout, entropy=False)
        self.data += data
        return len(data)

    def finish(self) -> str | None:
        """Append the payload to the container. Returns its name, None where it is empty."""
        if not self.data:
            return None
        self.container.append(BUNDLE, self.data)
        return BUNDLE
