// How well a scale fits a group, in 16-bit integers: exact, so that no order of summation matters.
#pragma once

#include "vector.hpp"

namespace {

struct Energy {
    int64_t fit = 0, own = 0;  // sum of code * unit, and of code^2
    double share() const { return own ? double(fit) * double(fit) / double(own) : 0; }
};

// So many products fit 32 bits together: |unit| < 2^15, |code| <= 2^7.
constexpr size_t EXACT = 512;

#if ISA == 2
using Shorts = __m512i;
inline Shorts shorts(const int16_t* p) { return _mm512_loadu_si512(p); }
inline Shorts every(int16_t x) { return _mm512_set1_epi16(x); }
inline Shorts nearest(Shorts u, Shorts k, Shorts half, __m128i shift) { return _mm512_sra_epi16(_mm512_add_epi16(_mm512_mulhrs_epi16(u, k), half), shift); }
inline Shorts within(Shorts c, Shorts low, Shorts high) { return _mm512_min_epi16(_mm512_max_epi16(c, low), high); }
inline Shorts added(Shorts sum, Shorts a, Shorts b) { return _mm512_add_epi32(sum, _mm512_madd_epi16(a, b)); }
inline int64_t total(Shorts s) { return _mm512_reduce_add_epi32(s); }
#elif ISA >= 1
using Shorts = __m256i;
inline Shorts shorts(const int16_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
inline Shorts every(int16_t x) { return _mm256_set1_epi16(x); }
inline Shorts nearest(Shorts u, Shorts k, Shorts half, __m128i shift) { return _mm256_sra_epi16(_mm256_add_epi16(_mm256_mulhrs_epi16(u, k), half), shift); }
inline Shorts within(Shorts c, Shorts low, Shorts high) { return _mm256_min_epi16(_mm256_max_epi16(c, low), high); }
inline Shorts added(Shorts sum, Shorts a, Shorts b) { return _mm256_add_epi32(sum, _mm256_madd_epi16(a, b)); }
inline int64_t total(Shorts s) {
    __m128i t = _mm_add_epi32(_mm256_castsi256_si128(s), _mm256_extracti128_si256(s, 1));
    t = _mm_add_epi32(t, _mm_shuffle_epi32(t, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(t, _mm_shuffle_epi32(t, 0xb1)));
}
#endif

// Of the codes (unit * multiplier rounded to 2^-shift, then to an integer) within [low, high], and within [-high, -low]: the scale with the other sign.
inline void energies(const int16_t* unit, size_t count, int16_t multiplier, int shift, int16_t low, int16_t high, Energy& first, Energy& second) {
    const int16_t half = int16_t(1 << (shift - 1));
    size_t i = 0;
#if ISA >= 1
    constexpr size_t STEP = sizeof(Shorts) / 2;
    const Shorts k = every(multiplier), h = every(half), l = every(low), m = every(high), nl = every(int16_t(-low)), nm = every(int16_t(-high));
    const __m128i s = _mm_cvtsi32_si128(shift);
    while (i + STEP <= count) {
        const size_t end = i + EXACT < count ? i + EXACT : count;
        Shorts fit1{}, own1{}, fit2{}, own2{};
        for (; i + STEP <= end; i += STEP) {
            const Shorts u = shorts(unit + i), code = nearest(u, k, h, s), a = within(code, l, m), b = within(code, nm, nl);
            fit1 = added(fit1, a, u), own1 = added(own1, a, a), fit2 = added(fit2, b, u), own2 = added(own2, b, b);
        }
        first.fit += total(fit1), first.own += total(own1), second.fit += total(fit2), second.own += total(own2);
    }
#endif
    for (; i < count; i++) {
        const int16_t scaled = int16_t((int32_t(unit[i]) * multiplier + 0x4000) >> 15), code = int16_t(int16_t(scaled + half) >> shift);
        const int16_t a = code < low ? low : code > high ? high : code, b = code < -high ? int16_t(-high) : code > -low ? int16_t(-low) : code;
        first.fit += int32_t(a) * unit[i], first.own += int32_t(a) * a, second.fit += int32_t(b) * unit[i], second.own += int32_t(b) * b;
    }
}

}  // namespace
