// What is asked of whole arrays: how far two are apart, whether all is finite, codes to dense bits.
#pragma once

#include "arguments.hpp"
#include "numbers.hpp"

namespace {

// Adds what the elements [first, last) have to `sums`, in float64.
template <class Number>
void compare_range(const void* left, const void* right, int64_t first, int64_t last, Difference& sums) {
    const auto *a = static_cast<const typename Number::Stored*>(left), *b = static_cast<const typename Number::Stored*>(right);
    D signal{}, energy{}, dot{}, noise{};
    I none{};
    auto add = [&](D x, D y) {
        const D d = x - y;
        signal += x * x, energy += y * y, dot += x * y, noise += d * d;
    };
    for (int64_t i = first; i < last; i += WIDTH) {
        const bool whole = i + WIDTH <= last;
        const F v = whole ? Number::read(a + i) : read_some<Number>(a + i, last - i), w = whole ? Number::read(b + i) : read_some<Number>(b + i, last - i);
        none -= w == 0.0f;
        add(low_half(v), low_half(w));
        add(high_half(v), high_half(w));
        if (!whole) sums.zeros -= WIDTH - (last - i);
    }
    for (int i = 0; i < WIDTH / 2; i++) sums.signal += signal[i], sums.energy += energy[i], sums.dot += dot[i], sums.noise += noise[i];
    for (int i = 0; i < WIDTH; i++) sums.zeros += none[i];
}

// The largest magnitude of every group of rows [first, last), and of these the least and the most.
template <class Number>
void extents_of_rows(const void* values, int64_t columns, int64_t group, int64_t first, int64_t last, Extent& found) {
    const auto* v = static_cast<const typename Number::Stored*>(values);
    for (int64_t r = first; r < last; r++)
        for (int64_t at = 0; at < columns; at += group) {
            const int64_t end = at + group < columns ? at + group : columns;
            F top{};
            for (int64_t i = at; i < end; i += WIDTH) {
                const auto* from = v + r * columns + i;
                top = most(top, magnitude(i + WIDTH <= end ? Number::read(from) : read_some<Number>(from, end - i)));
            }
            for (int lane = 1; lane < WIDTH; lane++) top[0] = top[lane] > top[0] ? top[lane] : top[0];
            if (top[0] > 0 && top[0] < found.least) found.least = top[0];
            if (top[0] > found.most) found.most = top[0];
        }
}

template <class Number>
void masked_range(const void* values, const uint8_t* kept, int64_t first, int64_t last, void* out) {
    using Stored = typename Number::Stored;
    const auto* v = static_cast<const Stored*>(values);
    for (int64_t i = first; i < last; i++) static_cast<Stored*>(out)[i] = v[i] & Stored(-Stored(kept[i]));
}

template <class Number>
bool finite_range(const void* values, int64_t first, int64_t last) {
    using Stored = typename Number::Stored;
    const auto* v = static_cast<const Stored*>(values);
    Stored found = 0;
    for (int64_t i = first; i < last; i++) found |= Stored((v[i] & Number::EXPONENT) == Number::EXPONENT);
    return !found;
}

inline uint64_t word(const uint8_t* from, int64_t n) {
    uint64_t w = 0;
    __builtin_memcpy(&w, from, n);
    return w;
}

// Eight codes, a byte each, to 8 * b dense bits, and back: neighbours are brought together, then pairs, then fours.
inline uint64_t gathered(uint64_t w, int b) {
    w = (w & 0x00ff00ff00ff00ffu) | (w & 0xff00ff00ff00ff00u) >> (8 - b);
    w = (w & 0x0000ffff0000ffffu) | (w & 0xffff0000ffff0000u) >> (16 - 2 * b);
    return (w & 0x00000000ffffffffu) | (w & 0xffffffff00000000u) >> (32 - 4 * b);
}

inline uint64_t scattered(uint64_t w, int b) {
    const uint64_t four = (uint64_t(1) << 4 * b) - 1, two = 0x0000000100000001u * ((uint64_t(1) << 2 * b) - 1), one = 0x0001000100010001u * ((uint64_t(1) << b) - 1);
    w = (w & four) | (w & ~four) << (32 - 4 * b);
    w = (w & two) | (w & ~two) << (16 - 2 * b);
    return (w & one) | (w & ~one) << (8 - b);
}

// `bias` is added to every byte, without carries into the next.
inline uint64_t biased(uint64_t w, uint8_t bias) {
    const uint64_t low7 = 0x7f7f7f7f7f7f7f7fu, add = 0x0101010101010101u * bias;
    return ((w & low7) + (add & low7)) ^ ((w ^ add) & ~low7);
}

template <int B>
void pack_codes(const uint8_t* codes, int64_t count, uint8_t bias, uint8_t* out) {
    auto eight = [&](uint64_t w) { return gathered(biased(w, bias) & 0x0101010101010101u * ((1u << B) - 1), B); };
    int64_t i = 0;
    for (; i + 64 <= count; i += 8, out += B) {  // eight bytes are written, those too many overwritten later
        const uint64_t w = eight(word(codes + i, 8));
        __builtin_memcpy(out, &w, 8);
    }
    for (; i < count; i += 8, out += B) {
        const int64_t n = count - i < 8 ? count - i : 8;
        uint64_t w = eight(word(codes + i, n));
        if (n < 8) w &= (uint64_t(1) << n * B) - 1;
        __builtin_memcpy(out, &w, (n * B + 7) / 8);
    }
}

template <int B>
void unpack_codes(const uint8_t* packed, int64_t count, uint8_t bias, uint8_t* out) {
    auto eight = [&](uint64_t w) { return biased(B < 8 ? scattered(w & ((uint64_t(1) << (8 * B % 64)) - 1), B) : w, uint8_t(-bias)); };
    int64_t i = 0;
    for (; i + 64 <= count; i += 8, packed += B) {  // eight bytes are read, of which B count
        const uint64_t w = eight(word(packed, 8));
        __builtin_memcpy(out + i, &w, 8);
    }
    for (; i < count; i += 8, packed += B) {
        const int64_t n = count - i < 8 ? count - i : 8;
        const uint64_t w = eight(word(packed, (n * B + 7) / 8));
        __builtin_memcpy(out + i, &w, n);
    }
}

}  // namespace
