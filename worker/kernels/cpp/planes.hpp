// Floats to byte planes and back (worker/kernels/planes.py): exponents, signs with mantissas, and the bytes below.
#pragma once

#include <cstdint>

namespace {

template <class Word>
void split_floats(const Word* values, int64_t n, uint8_t* planes) {
    constexpr int W = sizeof(Word);
    for (int64_t i = 0; i < n; i++) {
        const uint16_t top = uint16_t(values[i] >> (8 * W - 16));
        planes[i] = uint8_t(top >> 7);
    }
    for (int64_t i = 0; i < n; i++) {
        const uint16_t top = uint16_t(values[i] >> (8 * W - 16));
        planes[n + i] = uint8_t((top >> 8 & 0x80) | (top & 0x7f));
    }
    for (int p = 2; p < W; p++)
        for (int64_t i = 0; i < n; i++) planes[p * n + i] = uint8_t(values[i] >> 8 * (W - 1 - p));
}

template <class Word>
void merge_floats(const uint8_t* const* planes, int64_t n, Word* values) {
    constexpr int W = sizeof(Word);
    const uint8_t *e = planes[0], *s = planes[1], *a = planes[W > 2 ? 2 : 0], *b = planes[W > 2 ? 3 : 0];
    for (int64_t i = 0; i < n; i++) {
        const uint16_t top = uint16_t(uint16_t(e[i]) << 7 | (s[i] & 0x7f) | uint16_t(s[i] & 0x80) << 8);
        values[i] = W == 2 ? Word(top) : Word(uint32_t(top) << 16 | uint32_t(a[i]) << 8 | b[i]);
    }
}

}  // namespace
