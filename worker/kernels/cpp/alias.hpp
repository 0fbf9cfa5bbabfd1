// Exponents coded by rANS over sixteen symbols, in 64 lanes (the stream: worker/kernels/alias.py, whose numpy functions are the reference). Tables of sixteen entries
// stay in registers.
#pragma once

#include "arguments.hpp"
#include "vector.hpp"

namespace {

constexpr int STATES = 64, PRECISION = 12, ESCAPE = 15;
constexpr uint32_t LOWEST = 1u << 15, SLOTS = 1u << PRECISION;

// Ranks of bytes: the first of fifteen symbols that they are, else ESCAPE, and then they go to `escapes`, which has `room` for so many. Returns how many there are.
inline int64_t ranks_of(const uint8_t* bytes, int64_t n, const uint8_t* symbols, uint8_t* ranks, uint8_t* escapes, int64_t room) {
    constexpr int64_t STEP = 64;
    int64_t i = 0, others = 0;
    auto escape = [&](int64_t first, int64_t last) {
        for (int64_t j = first; j < last; j++)
            if (ranks[j] == ESCAPE) {
                if (others < room) escapes[others] = bytes[j];
                others++;
            }
    };
    for (; i + STEP <= n; i += STEP) {
        uint8_t found[STEP], most = 0;
        for (int j = 0; j < STEP; j++) found[j] = ESCAPE;
        for (int s = ESCAPE - 1; s >= 0; s--)
            for (int j = 0; j < STEP; j++) found[j] = bytes[i + j] == symbols[s] ? uint8_t(s) : found[j];
        for (int j = 0; j < STEP; j++) most = found[j] > most ? found[j] : most;
        __builtin_memcpy(ranks + i, found, STEP);
        if (most == ESCAPE) escape(i, i + STEP);
    }
    for (int64_t j = i; j < n; j++) {
        ranks[j] = ESCAPE;
        for (int s = ESCAPE - 1; s >= 0; s--)
            if (bytes[j] == symbols[s]) ranks[j] = uint8_t(s);
    }
    escape(i, n);
    return others;
}

inline void encode_one(const AliasEncode& a, uint32_t& x, uint8_t rank, uint16_t*& to) {
    const uint32_t frequency = a.frequencies[rank] & 0xffff, start = a.frequencies[rank] >> 16;
    if (x >= frequency << 19) *--to = uint16_t(x), x >>= 16;
    x = x / frequency << PRECISION | a.slots[start + x % frequency];
}

inline uint32_t entry_of(const AliasDecode& a, uint32_t slot) {
    const uint32_t bucket = slot >> 8;
    return (slot & 255) > a.last[bucket] ? a.second[bucket] : a.first[bucket];
}

#if ISA == 1
// For each mask of eight lanes: which of eight words goes to which lane, the words taken in turn; and the lanes of the mask at the end, in order.
struct Permutations {
    alignas(32) uint32_t spread[256][8], last[256][8];
    constexpr Permutations() : spread(), last() {
        for (int mask = 0; mask < 256; mask++) {
            int next = 0, count = __builtin_popcount(mask), at = 8 - count;
            for (int lane = 0; lane < 8; lane++) {
                spread[mask][lane] = uint32_t(next);
                if (mask >> lane & 1) next++, last[mask][at++] = uint32_t(lane);
            }
        }
    }
};
constexpr Permutations PERMUTATIONS;

inline __m256i pick(__m256i low, __m256i high, __m256i index) {  // of sixteen
    const __m256 a = _mm256_castsi256_ps(_mm256_permutevar8x32_epi32(low, index)), b = _mm256_castsi256_ps(_mm256_permutevar8x32_epi32(high, index));
    return _mm256_castps_si256(_mm256_blendv_ps(a, b, _mm256_castsi256_ps(_mm256_slli_epi32(index, 28))));
}
inline __m256i table(const uint32_t* t) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(t)); }
#endif

// Ranks [n] to words, which end at `words` + n; returns how many. `states` get what is left.
inline int64_t alias_encode(const AliasEncode& a) {
    uint32_t x[STATES];
    for (auto& s : x) s = LOWEST;
    uint16_t *const end = a.words + a.count, *to = end;
    int64_t i = a.count;
    for (; i % STATES; i--) encode_one(a, x[(i - 1) % STATES], a.ranks[i - 1], to);
#if ISA == 2
    const __m512i both16 = load<__m512i>(a.frequencies), mask16 = _mm512_set1_epi32(0xffff), one = _mm512_set1_epi32(1);
    __m512i v[STATES / 16];
    for (int l = 0; l < STATES / 16; l++) v[l] = load<__m512i>(x + 16 * l);
    for (; i >= STATES && to - a.words >= STATES; i -= STATES) {
        for (int l = STATES / 16 - 1; l >= 0; l--) {
            const __m512i rank = _mm512_cvtepu8_epi32(load<__m128i>(a.ranks + i - STATES + 16 * l));
            const __m512i both = _mm512_permutexvar_epi32(rank, both16), f = _mm512_and_si512(both, mask16), start = _mm512_srli_epi32(both, 16);
            const __mmask16 full = _mm512_cmpge_epu32_mask(_mm512_srli_epi32(v[l], 19), f);  // x >= f << 19
            const int count = __builtin_popcount(full);
            to -= count;
            _mm256_mask_storeu_epi16(to, __mmask16((1u << count) - 1), _mm512_cvtepi32_epi16(_mm512_maskz_compress_epi32(full, v[l])));
            const __m512i y = _mm512_mask_srli_epi32(v[l], full, v[l], 16);
            __m512i q = _mm512_cvttps_epi32(_mm512_div_ps(_mm512_cvtepi32_ps(y), _mm512_cvtepi32_ps(f)));
            __m512i r = _mm512_sub_epi32(y, _mm512_mullo_epi32(q, f));  // the quotient may be one off
            const __mmask16 below = _mm512_movepi32_mask(r);
            q = _mm512_mask_sub_epi32(q, below, q, one), r = _mm512_mask_add_epi32(r, below, r, f);
            const __mmask16 above = _mm512_cmpge_epi32_mask(r, f);
            q = _mm512_mask_add_epi32(q, above, q, one), r = _mm512_mask_sub_epi32(r, above, r, f);
            const __m512i slot = _mm512_i32gather_epi32(_mm512_add_epi32(start, r), a.slots, 2);
            v[l] = _mm512_or_si512(_mm512_slli_epi32(q, PRECISION), _mm512_and_si512(slot, mask16));
        }
    }
    for (int l = 0; l < STATES / 16; l++) store(x + 16 * l, v[l]);
#elif ISA == 1
    const __m256i low = table(a.frequencies), high = table(a.frequencies + 8), mask16 = _mm256_set1_epi32(0xffff), one = _mm256_set1_epi32(1);
    __m256i v[STATES / 8];
    for (int l = 0; l < STATES / 8; l++) v[l] = table(x + 8 * l);
    for (; i >= STATES && to - a.words >= STATES + 8; i -= STATES) {  // eight words are stored at once, below those that count
        for (int l = STATES / 8 - 1; l >= 0; l--) {
            const __m256i rank = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(a.ranks + i - STATES + 8 * l)));
            const __m256i both = pick(low, high, rank), f = _mm256_and_si256(both, mask16), start = _mm256_srli_epi32(both, 16);
            const __m256i stays = _mm256_cmpgt_epi32(f, _mm256_srli_epi32(v[l], 19));  // x < f << 19
            const int mask = ~_mm256_movemask_ps(_mm256_castsi256_ps(stays)) & 255;
            const __m256i out = _mm256_permutevar8x32_epi32(_mm256_and_si256(v[l], mask16), table(PERMUTATIONS.last[mask]));
            _mm_storeu_si128(reinterpret_cast<__m128i*>(to - 8), _mm_packus_epi32(_mm256_castsi256_si128(out), _mm256_extracti128_si256(out, 1)));
            to -= __builtin_popcount(mask);
            const __m256i y = _mm256_blendv_epi8(_mm256_srli_epi32(v[l], 16), v[l], stays);
            __m256i q = _mm256_cvttps_epi32(_mm256_div_ps(_mm256_cvtepi32_ps(y), _mm256_cvtepi32_ps(f)));
            __m256i r = _mm256_sub_epi32(y, _mm256_mullo_epi32(q, f));  // the quotient may be one off
            const __m256i below = _mm256_srai_epi32(r, 31);
            q = _mm256_add_epi32(q, below), r = _mm256_add_epi32(r, _mm256_and_si256(below, f));
            const __m256i fits = _mm256_cmpgt_epi32(f, r);
            q = _mm256_add_epi32(q, _mm256_andnot_si256(fits, one)), r = _mm256_sub_epi32(r, _mm256_andnot_si256(fits, f));
            const __m256i slot = _mm256_i32gather_epi32(reinterpret_cast<const int*>(a.slots), _mm256_add_epi32(start, r), 2);
            v[l] = _mm256_or_si256(_mm256_slli_epi32(q, PRECISION), _mm256_and_si256(slot, mask16));
        }
    }
    for (int l = 0; l < STATES / 8; l++) _mm256_storeu_si256(reinterpret_cast<__m256i*>(x + 8 * l), v[l]);
#endif
    for (; i; i--) encode_one(a, x[(i - 1) % STATES], a.ranks[i - 1], to);
    __builtin_memcpy(a.states, x, sizeof x);
    return end - to;
}

// Bytes [n] of the stream. Returns 0, or what is wrong with it: 1 the words, 2 the escapes, 3 the states.
inline int alias_decode(const AliasDecode& a) {
    uint32_t x[STATES];
    __builtin_memcpy(x, a.states, sizeof x);
    int64_t i = 0, word = 0, escape = 0;
#if ISA == 2
    const __m512i first = load<__m512i>(a.first), second = load<__m512i>(a.second), last = _mm512_cvtepu8_epi32(load<__m128i>(a.last));
    const __m512i slots = _mm512_set1_epi32(SLOTS - 1), in_bucket = _mm512_set1_epi32(255), frequencies = _mm512_set1_epi32(0xfff), bias = _mm512_set1_epi32(SLOTS);
    const __m128i symbols = load<__m128i>(a.symbols), rank = _mm_set1_epi8(15);
    __m512i v[STATES / 16];
    for (int l = 0; l < STATES / 16; l++) v[l] = load<__m512i>(x + 16 * l);
    for (; i + STATES <= a.count && word + STATES + 16 <= a.words_count; i += STATES) {
        __m128i ranks[STATES / 16];
#pragma GCC unroll 4
        for (int l = 0; l < STATES / 16; l++) {
            const __m512i slot = _mm512_and_si512(v[l], slots), bucket = _mm512_srli_epi32(slot, 8);
            const __mmask16 above = _mm512_cmpgt_epi32_mask(_mm512_and_si512(slot, in_bucket), _mm512_permutexvar_epi32(bucket, last));
            const __m512i e = _mm512_mask_permutexvar_epi32(_mm512_permutexvar_epi32(bucket, first), above, bucket, second);
            const __m512i offset = _mm512_sub_epi32(_mm512_add_epi32(slot, _mm512_srli_epi32(e, 16)), bias);
            const __m512i y = _mm512_add_epi32(_mm512_mullo_epi32(_mm512_and_si512(e, frequencies), _mm512_srli_epi32(v[l], PRECISION)), offset);
            const __mmask16 wants = _mm512_cmplt_epu32_mask(y, _mm512_set1_epi32(int(LOWEST)));
            const __m512i words = _mm512_maskz_expand_epi32(wants, _mm512_cvtepu16_epi32(load<__m256i>(a.words + 2 * word)));
            word += __builtin_popcount(wants);
            v[l] = _mm512_or_si512(_mm512_mask_slli_epi32(y, wants, y, 16), words);
            ranks[l] = _mm_and_si128(_mm512_cvtepi32_epi8(_mm512_srli_epi32(e, 12)), rank);
        }
        for (int l = 0; l < STATES / 16; l++) {
            uint8_t* out = a.out + i + 16 * l;
            store(out, _mm_shuffle_epi8(symbols, ranks[l]));
            for (uint32_t m = uint32_t(_mm_movemask_epi8(_mm_cmpeq_epi8(ranks[l], rank))); m; m &= m - 1) {
                if (escape == a.escapes_count) return 2;
                out[__builtin_ctz(m)] = a.escapes[escape++];
            }
        }
    }
    for (int l = 0; l < STATES / 16; l++) store(x + 16 * l, v[l]);
#elif ISA == 1
    const __m256i first0 = table(a.first), first1 = table(a.first + 8), second0 = table(a.second), second1 = table(a.second + 8);
    const __m256i last = _mm256_broadcastsi128_si256(load<__m128i>(a.last)), symbols = _mm256_broadcastsi128_si256(load<__m128i>(a.symbols));
    const __m256i slots = _mm256_set1_epi32(SLOTS - 1), in_bucket = _mm256_set1_epi32(255), low_byte = _mm256_set1_epi32(int(0x80808000));
    const __m256i frequencies = _mm256_set1_epi32(0xfff), bias = _mm256_set1_epi32(SLOTS), rank = _mm256_set1_epi32(15), lanes = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    __m256i v[STATES / 8];
    for (int l = 0; l < STATES / 8; l++) v[l] = table(x + 8 * l);
    for (; i + STATES <= a.count && word + STATES + 8 <= a.words_count; i += STATES) {
        __m256i sym[STATES / 8];
#pragma GCC unroll 8
        for (int l = 0; l < STATES / 8; l++) {
            const __m256i slot = _mm256_and_si256(v[l], slots), bucket = _mm256_srli_epi32(slot, 8);
            const __m256i above = _mm256_cmpgt_epi32(_mm256_and_si256(slot, in_bucket), _mm256_shuffle_epi8(last, _mm256_or_si256(bucket, low_byte)));
            const __m256i e = _mm256_blendv_epi8(pick(first0, first1, bucket), pick(second0, second1, bucket), above);
            const __m256i offset = _mm256_sub_epi32(_mm256_add_epi32(slot, _mm256_srli_epi32(e, 16)), bias);
            const __m256i y = _mm256_add_epi32(_mm256_mullo_epi32(_mm256_and_si256(e, frequencies), _mm256_srli_epi32(v[l], PRECISION)), offset);
            const __m256i wants = _mm256_cmpeq_epi32(_mm256_srli_epi32(y, 15), _mm256_setzero_si256());
            const int mask = _mm256_movemask_ps(_mm256_castsi256_ps(wants));
            const __m256i words = _mm256_cvtepu16_epi32(load<__m128i>(a.words + 2 * word));
            word += __builtin_popcount(mask);
            v[l] = _mm256_blendv_epi8(y, _mm256_or_si256(_mm256_slli_epi32(y, 16), _mm256_permutevar8x32_epi32(words, table(PERMUTATIONS.spread[mask]))), wants);
            sym[l] = _mm256_and_si256(_mm256_srli_epi32(e, 12), rank);
        }
        for (int h = 0; h < 2; h++) {
            const __m256i* s = sym + 4 * h;
            const __m256i packed = _mm256_packus_epi16(_mm256_packus_epi32(s[0], s[1]), _mm256_packus_epi32(s[2], s[3]));
            const __m256i ranks = _mm256_permutevar8x32_epi32(packed, lanes);
            uint8_t* out = a.out + i + 32 * h;
            _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), _mm256_shuffle_epi8(symbols, ranks));
            for (uint32_t m = uint32_t(_mm256_movemask_epi8(_mm256_cmpeq_epi8(ranks, _mm256_set1_epi8(ESCAPE)))); m; m &= m - 1) {
                if (escape == a.escapes_count) return 2;
                out[__builtin_ctz(m)] = a.escapes[escape++];
            }
        }
    }
    for (int l = 0; l < STATES / 8; l++) _mm256_storeu_si256(reinterpret_cast<__m256i*>(x + 8 * l), v[l]);
#endif
    for (; i < a.count; i++) {
        uint32_t& s = x[i % STATES];
        const uint32_t slot = s & (SLOTS - 1), e = entry_of(a, slot), sym = e >> 12 & 15;
        s = (e & 0xfff) * (s >> PRECISION) + slot + (e >> 16) - SLOTS;
        if (s < LOWEST) {
            if (word == a.words_count) return 1;
            uint16_t w;
            __builtin_memcpy(&w, a.words + 2 * word++, 2);
            s = s << 16 | w;
        }
        if (sym == ESCAPE && escape == a.escapes_count) return 2;
        a.out[i] = sym == ESCAPE ? a.escapes[escape++] : a.symbols[sym];
    }
    if (word != a.words_count) return 1;
    if (escape != a.escapes_count) return 2;
    for (const uint32_t s : x)
        if (s != LOWEST) return 3;
    return 0;
}

}  // namespace
