// The lowest magnitudes of each row, exactly, ties by position. The reference is `lowest_per_row` in worker/kernels/select.py.
//
// Magnitudes order as their bits do, without the sign. The k-th lowest is found bit by bit, by counting those below: as many passes over a row as a key has bits, which sixteen or
// more lanes at a time make faster than a histogram.
#pragma once

#include <cstdint>

namespace {

constexpr int64_t FEW = 32;       // columns of a row whose ranks are simply counted
constexpr int64_t COUNTED = 4096; // keys that are counted together: as many fit a key

template <class Key>
inline int64_t below(const Key* keys, int64_t n, Key bound) {
    int64_t found = 0;
    for (int64_t at = 0; at < n; at += COUNTED) {
        const int64_t end = at + COUNTED < n ? at + COUNTED : n;
        Key here = 0;
        for (int64_t i = at; i < end; i++) here = Key(here + Key(keys[i] < bound));
        found += here;
    }
    return found;
}

// Ranks of N keys, or of n where N is 0.
template <int N, class Key>
inline void mark_few(const Key* keys, int64_t n, int64_t k, uint8_t* out) {
    if (N) n = N;
    for (int64_t i = 0; i < n; i++) {
        int64_t rank = 0;
        for (int64_t j = 0; j < n; j++) rank += j < i ? keys[j] <= keys[i] : keys[j] < keys[i];
        out[i] = rank < k;
    }
}

template <class Key>
inline void mark_row(const Key* keys, int64_t n, int64_t k, uint8_t* out) {
    Key threshold = 0;
    for (int bit = int(sizeof(Key)) * 8 - 2; bit >= 0; bit--) {
        const Key higher = Key(threshold | Key(Key(1) << bit));
        if (below(keys, n, higher) < k) threshold = higher;
    }
    for (int64_t i = 0; i < n; i++) out[i] = keys[i] < threshold;
    int64_t ties = k - below(keys, n, threshold);
    for (int64_t at = 0; ties > 0 && at < n; at += 64) {
        const int64_t end = at + 64 < n ? at + 64 : n;
        Key equal = 0;
        for (int64_t i = at; i < end; i++) equal = Key(equal | Key(keys[i] == threshold));
        for (int64_t i = at; equal && ties > 0 && i < end; i++)
            if (keys[i] == threshold) out[i] = 1, ties--;
    }
}

// Rows [first, last); `room` holds a row of keys, which are as wide as the values.
template <class Key>
inline void mark_rows(const void* values, int64_t columns, int64_t k, int64_t first, int64_t last, uint8_t* out, void* room) {
    constexpr Key MAGNITUDE = Key(~(Key(1) << (sizeof(Key) * 8 - 1)));
    auto* keys = static_cast<Key*>(room);
    for (int64_t r = first; r < last; r++, out += columns) {
        const auto* row = static_cast<const Key*>(values) + r * columns;
        for (int64_t i = 0; i < columns; i++) keys[i] = Key(row[i] & MAGNITUDE);
        if (columns == 4) mark_few<4>(keys, columns, k, out);
        else if (columns <= FEW) mark_few<0>(keys, columns, k, out);
        else mark_row(keys, columns, k, out);
    }
}

}  // namespace
