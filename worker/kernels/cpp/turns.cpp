// Floats about the scale of their row and column: worker/kernels/scaled.py and turns.py, which are the reference. Integers only; the caller's thread does it.
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>

namespace {

constexpr int SYMBOLS = 16, BITS = 12, LANES = 32, ESCAPE = 15, MIDDLE = 8;
constexpr uint32_t SUM = 1u << BITS, LOW = 1u << 16;

template <class Word>
int64_t split(const Word* values, int64_t n, int low, int top, int depth, uint8_t* ranks, uint8_t* leads, uint8_t* rests, uint8_t* below, uint8_t* escapes) {
    constexpr int SHIFT = 8 * sizeof(Word) - 16;
    const int left = low - depth;
    const uint16_t leading = uint16_t((1 << depth) - 1), resting = uint16_t((1 << left) - 1);
    int64_t others = 0;
    for (int64_t i = 0; i < n; i++) {
        const uint16_t t = uint16_t(values[i] >> SHIFT);
        const uint8_t rank = uint8_t(top - ((t & 0x7fff) >> low));
        ranks[i] = rank < ESCAPE ? rank : ESCAPE;
        leads[i] = uint8_t(t >> left & leading);
        rests[i] = uint8_t((t & resting) | t >> 15 << left);
    }
    if constexpr (sizeof(Word) == 4)
        for (int64_t i = 0; i < n; i++) below[i] = uint8_t(values[i] >> 8), below[n + i] = uint8_t(values[i]);
    for (int64_t i = 0; i < n; i++) {
        escapes[others] = uint8_t((values[i] >> SHIFT & 0x7fff) >> low);
        others += ranks[i] == ESCAPE;
    }
    return others;
}

template <class Word>
bool merge(const uint8_t* ranks, const uint8_t* leads, const uint8_t* rests, const uint8_t* below, const uint8_t* escapes, int64_t held, int64_t n, int low, int top, int depth, Word* values) {
    const int left = low - depth;
    const uint16_t resting = uint16_t((1 << left) - 1);
    for (int64_t i = 0; i < n; i++) {
        const uint16_t rest = rests[i], t = uint16_t(((uint8_t(top - ranks[i]) << low) & 0x7fff) | leads[i] << left | (rest & resting) | rest >> left << 15);
        if constexpr (sizeof(Word) == 2) values[i] = t;
        else values[i] = uint32_t(t) << 16 | uint32_t(below[i]) << 8 | below[n + i];
    }
    int64_t used = 0;
    constexpr int SHIFT = 8 * sizeof(Word) - 16;
    for (int64_t i = 0; i < n; i++)
        if (ranks[i] == ESCAPE) {
            if (used == held) return false;
            const Word mask = Word(Word((0x7fff >> low) << low) << SHIFT);
            values[i] = Word((values[i] & ~mask) | Word(Word(escapes[used++]) << (low + SHIFT)));
        }
    return used == held;
}

}  // namespace

#define EXPORT extern "C" __attribute__((visibility("default")))

// Fields of values of 2 or 4 bytes; `escapes` has room for count + 1. Returns how many there are.
EXPORT int64_t modelpress_fields(const void* values, int width, int64_t count, int low, int top, int depth, uint8_t* ranks, uint8_t* leads, uint8_t* rests, uint8_t* below, uint8_t* escapes) {
    if (width == 2) return split(static_cast<const uint16_t*>(values), count, low, top, depth, ranks, leads, rests, below, escapes);
    return split(static_cast<const uint32_t*>(values), count, low, top, depth, ranks, leads, rests, below, escapes);
}

// False where there are not `held` escapes.
EXPORT int modelpress_unfields(const uint8_t* ranks, const uint8_t* leads, const uint8_t* rests, const uint8_t* below, const uint8_t* escapes, int64_t held, int width, int64_t count, int low, int top, int depth, void* values) {
    if (width == 2) return merge(ranks, leads, rests, below, escapes, held, count, low, top, depth, static_cast<uint16_t*>(values));
    return merge(ranks, leads, rests, below, escapes, held, count, low, top, depth, static_cast<uint32_t*>(values));
}

// Sums of values by row and by column, [rows] and [columns], of those that lie row by row from column `phase` on.
EXPORT void modelpress_sums(const uint8_t* values, int64_t count, int64_t columns, int64_t phase, int64_t* rows, int64_t* by_column) {
    memset(by_column, 0, sizeof(int64_t) * size_t(columns));
    for (int64_t at = 0, c = phase; at < count; c = 0) {
        const int64_t n = columns - c < count - at ? columns - c : count - at;
        int64_t sum = 0;
        for (int64_t i = 0; i < n; i++) sum += values[at + i], by_column[c + i] += values[at + i];
        *rows++ = sum, at += n;
    }
}

EXPORT void modelpress_spread_scales(const int8_t* rows, const int8_t* columns, int64_t width, int64_t phase, int64_t count, uint8_t* contexts) {
    for (int64_t at = 0, c = phase; at < count; c = 0) {
        const int64_t n = width - c < count - at ? width - c : count - at;
        const int16_t row = int16_t(MIDDLE + *rows++);
        for (int64_t i = 0; i < n; i++) {
            const int16_t both = int16_t(row + columns[c + i]);
            contexts[at + i] = uint8_t(both < 0 ? 0 : both > SYMBOLS - 1 ? SYMBOLS - 1 : both);
        }
        at += n;
    }
}

EXPORT void modelpress_turns_count(const uint8_t* symbols, const uint8_t* contexts, int64_t count, int64_t* counts) {
    uint32_t own[4][256] = {};  // equal neighbours do not wait for each other's count
    for (int64_t i = 0; i < count; i++) own[i & 3][(contexts[i] << 4 | symbols[i]) & 255]++;
    for (int p = 0; p < 256; p++) counts[p] = int64_t(own[0][p]) + own[1][p] + own[2][p] + own[3][p];
}

// Words end at `words` + count; returns how many. `table`: [16 contexts][16] frequency | sum of the lower ones << 16.
EXPORT int64_t modelpress_turns_encode(const uint8_t* symbols, const uint8_t* contexts, int64_t count, const uint32_t* table, uint16_t* words, uint32_t* states) {
    uint32_t x[LANES];
    for (auto& s : x) s = LOW;
    uint16_t *const end = words + count, *to = end;
    auto one = [&](uint32_t& s, int64_t i) {  // a symbol makes one word at most, so that there is always room for it
        const uint32_t both = table[contexts[i] << 4 | symbols[i]], f = both & 0xffff;
        const bool full = s >= uint64_t(f) << (32 - BITS);
        to[-1] = uint16_t(s);
        to -= full;
        s = full ? s >> 16 : s;
        s = (s / f << BITS) + s % f + (both >> 16);
    };
    int64_t i = count;
    for (; i % LANES; i--) one(x[(i - 1) % LANES], i - 1);
    for (; i; i -= LANES)
        for (int l = LANES - 1; l >= 0; l--) one(x[l], i - LANES + l);
    memcpy(states, x, sizeof x);
    return end - to;
}

// Returns 0, or what is wrong: 1 the words, 2 a context in which nothing occurs, 3 the states, 4 memory is short.
EXPORT int modelpress_turns_decode(const uint8_t* words, int64_t held, const uint32_t* states, const uint8_t* contexts, int64_t count, const uint32_t* table, uint8_t* symbols) {
    std::unique_ptr<uint8_t[]> slots(new (std::nothrow) uint8_t[SYMBOLS * SUM]());
    if (!slots) return 4;
    for (int c = 0; c < SYMBOLS; c++) {
        const uint32_t* own = table + SYMBOLS * c;
        for (int s = 0; s < SYMBOLS; s++) memset(slots.get() + c * SUM + (own[s] >> 16), s, own[s] & 0xffff);
    }
    uint32_t x[LANES];
    memcpy(x, states, sizeof x);
    int64_t word = 0;
    uint32_t none = 0;  // its highest bit: a symbol with a frequency of 0, so of a context in which nothing occurs
    auto one = [&](uint32_t s, int64_t i) {
        const uint32_t context = contexts[i] & (SYMBOLS - 1), slot = s & (SUM - 1), symbol = slots[context << BITS | slot], both = table[context << 4 | symbol], f = both & 0xffff;
        none |= f - 1;
        symbols[i] = uint8_t(symbol);
        return f * (s >> BITS) + slot - (both >> 16);
    };
    int64_t i = 0;
    for (; i + LANES <= count && word + LANES < held; i += LANES)
        for (int l = 0; l < LANES; l++) {
            const uint32_t s = one(x[l], i + l), wants = s < LOW;
            uint16_t next;
            memcpy(&next, words + 2 * word, 2);
            word += wants;
            x[l] = s << (wants << 4) | (next & -wants);
        }
    for (; i < count; i++) {
        uint32_t& s = x[i % LANES];
        s = one(s, i);
        if (s < LOW) {
            if (word == held) return 1;
            uint16_t next;
            memcpy(&next, words + 2 * word++, 2);
            s = s << 16 | next;
        }
    }
    if (none >> 31) return 2;
    if (word != held) return 1;
    for (const uint32_t s : x)
        if (s != LOW) return 3;
    return 0;
}
