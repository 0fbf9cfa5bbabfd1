// Floats as files have them, to float32 and back, a register at a time.
#pragma once

#include "vector.hpp"

namespace {

enum Dtype : int { F32 = 0, F16 = 1, BF16 = 2 };

struct Single {
    using Stored = uint32_t;
    static constexpr uint32_t EXPONENT = 0x7f800000u;
    static constexpr float LARGEST = 3.40282346638528859812e38f, EPSILON = 1.1920928955078125e-07f;
    static F read(const Stored* p) { return load<F>(p); }
    static void write(Stored* p, F v) { store(p, v); }
};

struct Brain {
    using Stored = uint16_t;
    static constexpr uint16_t EXPONENT = 0x7f80;
    static constexpr float LARGEST = 3.38953138925153547590e38f, EPSILON = 0.0078125f;
    static F read(const Stored* p) { return (F)(words(p) << 16); }
    static void write(Stored* p, F v) {  // half to even; NaN stays it, as its payloads here leave room
        const U b = (U)v;
        put(p, (b + 0x7fffu + ((b >> 16) & 1u)) >> 16, Stored());
    }
};

// Exponents of float32 are 112 more: multiplying by 2^112 moves normal and subnormal numbers alike, exactly. To round, normal numbers get an addition that
// carries, subnormal ones the addition of 0.5, whose last bit is worth 2^-24.
struct Half {
    using Stored = uint16_t;
    static constexpr uint16_t EXPONENT = 0x7c00;
    static constexpr float LARGEST = 65504.0f, EPSILON = 0.0009765625f;
    static F read(const Stored* p) {
        const U h = words(p), v = (U)((F)((h & 0x7fffu) << 13) * 0x1p112f);
        return (F)(((h & 0x7c00u) == 0x7c00u ? v | 0x7f800000u : v) | (h & 0x8000u) << 16);
    }
    static void write(Stored* p, F v) {
        const U b = (U)v, sign = (b >> 16) & 0x8000u, m = b & 0x7fffffffu;
        const U normal = (m - (112u << 23) + 0xfffu + ((m >> 13) & 1u)) >> 13, small = (U)((F)m + 0.5f) - (126u << 23);
        const I size = (I)m;  // every instruction set compares these
        U h = size < (113 << 23) ? small : normal;
        h = size < (143 << 23) ? h : U{} + 0x7c00u;
        h = size > (255 << 23) ? U{} + 0x7e00u : h;
        put(p, h | sign, Stored());
    }
};

// e4m3 as bytes -128 to 127, of numbers of at most 448; as Half, with 120 for 112 and 2^-9 for the last bit.
struct Eighth {
    static constexpr float LARGEST = 448.0f;
    static I code(F v) {
        const U b = (U)v, sign = (b >> 24) & 0x80u, m = b & 0x7fffffffu;
        const U normal = (m - (120u << 23) + 0x7ffffu + ((m >> 20) & 1u)) >> 20, small = (U)((F)m + 16384.0f) - (141u << 23);
        return (I)((((I)m < (121 << 23) ? small : normal) | sign) << 24) >> 24;
    }
    static F value(I code) {
        const U c = (U)code, m = c & 0x7fu, v = (U)((F)(m << 20) * 0x1p120f);
        return (F)((m == 0x7fu ? v | 0x7fc00000u : v) | (c & 0x80u) << 24);
    }
};

template <class Number>
inline float rounded(float x) {
    typename Number::Stored kept[WIDTH];
    Number::write(kept, all(x));
    return Number::read(kept)[0];
}

// Some numbers less than a register.
template <class Number>
inline F read_some(const typename Number::Stored* p, size_t n) {
    typename Number::Stored rest[WIDTH] = {};
    __builtin_memcpy(rest, p, n * sizeof *p);
    return Number::read(rest);
}

template <class Number>
inline void write_some(typename Number::Stored* p, size_t n, F v) {
    typename Number::Stored rest[WIDTH];
    Number::write(rest, v);
    __builtin_memcpy(p, rest, n * sizeof *p);
}

}  // namespace
