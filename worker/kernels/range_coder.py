"""A binary range coder: bits against their probabilities, in integers of at most 32 bits (G. N. N. Martin 1979; the form is that of LZMA).

The state is an interval [low, low + range) of 32-bit fractions. A bit with probability p / 2^16 of being 1 takes the lower part of `(range >> 16) * p`,
a 0 takes the rest; below 2^24 a byte is shifted out. What stands behind the last byte counts as zeros, so zeros at the end are not stored.
"""

from __future__ import annotations

TOP, MASK = 1 << 24, (1 << 32) - 1


class RangeEncoder:
    def __init__(self):
        self.low, self.range, self.out = 0, MASK, bytearray()

    def code(self, p: int, bit: int) -> int:
        """Append `bit`, which is 1 with probability p / 2^16, 0 < p < 2^16. Returns it."""
        bound = (self.range >> 16) * p
        if bit:
            self.range = bound
        else:
            self.low += bound
            self.range -= bound
        while self.range < TOP:
            self._shift()
            self.range <<= 8
        return bit

    def _shift(self) -> None:
        if self.low > MASK:
            self._carry()
        self.out.append(self.low >> 24)
        self.low = self.low << 8 & MASK

    def _carry(self) -> None:
        self.low &= MASK
        at = len(self.out) - 1
        while self.out[at] == 255:
            self.out[at] = 0
            at -= 1
        self.out[at] += 1

    def finish(self) -> bytes:
        """All bytes. The last of them are those of the number in the interval that ends in the most zeros."""
        for zeros in (24, 16, 8, 0):
            number = (self.low + (1 << zeros) - 1) >> zeros << zeros
            if number < self.low + self.range:
                break
        self.low = number
        for _ in range(4):
            self._shift()
        return bytes(self.out).rstrip(b"\0")


class RangeDecoder:
    """Args: data: what `finish` gave. Nothing in it can go wrong: other bytes are other bits."""

    def __init__(self, data: bytes):
        self.data, self.at, self.range = data, 4, MASK
        self.value = int.from_bytes(data[:4].ljust(4, b"\0"), "big")

    def code(self, p: int, bit: int = 0) -> int:
        """The next bit, which is 1 with probability p / 2^16. The second argument is for the encoder's signature."""
        bound = (self.range >> 16) * p
        if self.value < bound:
            bit, self.range = 1, bound
        else:
            bit, self.range = 0, self.range - bound
            self.value -= bound
        while self.range < TOP:
            self.value = self.value << 8 | (self.data[self.at] if self.at < len(self.data) else 0)
            self.range <<= 8
            self.at += 1
        return bit
