// One register of float32, as wide as the instruction set has it, and sums in sixteen lanes whatever that is. Every operation is that of IEEE 754 on each lane, so
// that all machines find the same bits. No header with inline functions is included here but the intrinsics': compiled for AVX-512, one of them could be the
// copy that the linker keeps for everybody.
#pragma once

#include <cstddef>
#include <cstdint>
#if ISA >= 1
#include <immintrin.h>
#endif

namespace {

#if ISA == 2
constexpr int REGISTER = 64;
#elif ISA >= 1
constexpr int REGISTER = 32;
#else
constexpr int REGISTER = 16;
#endif

constexpr int WIDTH = REGISTER / 4;  // lanes of a register
constexpr int LANES = 16;            // partial sums, see sums.py
constexpr int BLOCK = 128;           // values that are summed by themselves

typedef float F __attribute__((vector_size(REGISTER)));
typedef int32_t I __attribute__((vector_size(REGISTER)));
typedef uint32_t U __attribute__((vector_size(REGISTER)));
typedef double D __attribute__((vector_size(REGISTER)));

template <class V>
inline V load(const void* from) {
    V v;
    __builtin_memcpy(&v, from, sizeof v);
    return v;
}

template <class V>
inline void store(void* to, V v) {
    __builtin_memcpy(to, &v, sizeof v);
}

inline F all(float x) { return x - F{}; }
inline F magnitude(F v) { return (F)((U)v & 0x7fffffffu); }
inline F least(F a, F b) { return b < a ? b : a; }  // NaN where a is
inline F most(F a, F b) { return a < b ? b : a; }
inline I integers(F v) { return __builtin_convertvector(v, I); }
inline F floats(I v) { return __builtin_convertvector(v, F); }

// Half to even, of |v| < 2^22: adding 1.5 * 2^23 leaves no room for a fraction.
inline F round_even(F v) { return (v + 12582912.0f) - 12582912.0f; }

// NaN (0 / 0) counts as 0.
inline F within(F v, float low, float high) {
    v = v == v ? v : F{};
    return least(most(v, all(low)), all(high));
}

// The nearest integer within [low, high], both integers, so that they may be applied first.
inline F round_within(F v, float low, float high) { return round_even(within(v, low, high)); }

// WIDTH numbers of 8 or 16 bits, to registers and back (from integers that fit).
#if ISA == 2
inline U words(const uint16_t* p) { return (U)_mm512_cvtepu16_epi32(load<__m256i>(p)); }
inline I words(const int16_t* p) { return (I)_mm512_cvtepi16_epi32(load<__m256i>(p)); }
inline I bytes(const int8_t* p) { return (I)_mm512_cvtepi8_epi32(load<__m128i>(p)); }
inline void put(void* p, U v, uint16_t) { store(p, _mm512_cvtepi32_epi16((__m512i)v)); }
inline void put(void* p, I v, int8_t) { store(p, _mm512_cvtepi32_epi8((__m512i)v)); }
inline D low_half(F v) { return (D)_mm512_cvtps_pd(_mm512_castps512_ps256((__m512)v)); }
inline D high_half(F v) { return (D)_mm512_cvtps_pd(_mm256_castpd_ps(_mm512_extractf64x4_pd((__m512d)v, 1))); }
#elif ISA >= 1
inline U words(const uint16_t* p) { return (U)_mm256_cvtepu16_epi32(load<__m128i>(p)); }
inline I words(const int16_t* p) { return (I)_mm256_cvtepi16_epi32(load<__m128i>(p)); }
inline I bytes(const int8_t* p) { return (I)_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))); }
inline __m128i halves(I v, int byte0, int byte1) {  // of each lane two bytes
    const char a = char(byte0), b = char(byte1);
    const __m256i order = _mm256_setr_epi8(a, b, a + 4, b + 4, a + 8, b + 8, a + 12, b + 12, -1, -1, -1, -1, -1, -1, -1, -1, a, b, a + 4, b + 4, a + 8, b + 8, a + 12, b + 12, -1, -1, -1, -1, -1, -1, -1, -1);
    const __m256i v2 = _mm256_shuffle_epi8((__m256i)v, order);
    return _mm_unpacklo_epi64(_mm256_castsi256_si128(v2), _mm256_extracti128_si256(v2, 1));
}
inline void put(void* p, U v, uint16_t) { store(p, halves((I)v, 0, 1)); }
inline void put(void* p, I v, int8_t) {
    const __m128i two = halves(v, 0, 1);
    _mm_storel_epi64(static_cast<__m128i*>(p), _mm_packs_epi16(two, two));
}
inline D low_half(F v) { return (D)_mm256_cvtps_pd(_mm256_castps256_ps128((__m256)v)); }
inline D high_half(F v) { return (D)_mm256_cvtps_pd(_mm256_extractf128_ps((__m256)v, 1)); }
#else
template <class V, class T>
inline V widened(const T* p) {
    V v{};
    for (int i = 0; i < WIDTH; i++) v[i] = p[i];
    return v;
}
inline U words(const uint16_t* p) { return widened<U>(p); }
inline I words(const int16_t* p) { return widened<I>(p); }
inline I bytes(const int8_t* p) { return widened<I>(p); }
template <class T, class V>
inline void put(void* p, V v, T) {
    T narrow[WIDTH];
    for (int i = 0; i < WIDTH; i++) narrow[i] = T(v[i]);
    __builtin_memcpy(p, narrow, sizeof narrow);
}
inline D low_half(F v) { return D{double(v[0]), double(v[1])}; }
inline D high_half(F v) { return D{double(v[2]), double(v[3])}; }
#endif

// 8 + 8, 4 + 4, 2 + 2, 1 + 1 of sixteen lanes
inline float tree(const float* lanes) {
    float t[8];
    for (int i = 0; i < 8; i++) t[i] = lanes[i] + lanes[i + 8];
    for (int i = 0; i < 4; i++) t[i] += t[i + 4];
    return (t[0] + t[2]) + (t[1] + t[3]);
}

// The sum of term(i), a register of terms from i on, for i below `count`, in the order of sums.py; count is a multiple of 16 and, beyond 128, of 128.
template <class Term>
inline float ordered_sum(size_t count, Term term) {
    float total = 0;
    for (size_t at = 0; at < count; at += BLOCK) {
        const size_t end = at + BLOCK < count ? at + BLOCK : count;
        float lanes[LANES];
        if constexpr (WIDTH == 16) {
            F a = term(at);
            for (size_t i = at + LANES; i < end; i += LANES) a += term(i);
            store(lanes, a);
        } else if constexpr (WIDTH == 8) {
            F a = term(at), b = term(at + 8);
            for (size_t i = at + LANES; i < end; i += LANES) a += term(i), b += term(i + 8);
            store(lanes, a), store(lanes + 8, b);
        } else {
            for (int part = 0; part < LANES; part += WIDTH) {
                F a = term(at + part);
                for (size_t i = at + LANES + part; i < end; i += LANES) a += term(i);
                store(lanes + part, a);
            }
        }
        total = at ? total + tree(lanes) : tree(lanes);
    }
    return total;
}

}  // namespace
