// Levels at equal distance: scales, zero points, codes and back. The reference is worker/kernels/uniform.py and scale_search.py; what is written here is what it computes.
#pragma once

#include "arguments.hpp"
#include "numbers.hpp"
#include "scores.hpp"

namespace {

// `scale` as it is stored; one that would be 0 or infinite there becomes the nearest that is neither.
inline float stored(float scale, int dtype) {
    auto kept = [&](auto number) {
        using N = decltype(number);
        const float found = rounded<N>(scale < -N::LARGEST ? -N::LARGEST : scale > N::LARGEST ? N::LARGEST : scale);
        return found == 0 ? (scale < 0 ? -N::EPSILON : N::EPSILON) : found;
    };
    return dtype == F16 ? kept(Half{}) : dtype == BF16 ? kept(Brain{}) : kept(Single{});
}

inline size_t padded(size_t n) { return n <= BLOCK ? (n + LANES - 1) / LANES * LANES : (n + BLOCK - 1) / BLOCK * BLOCK; }

// One group in float32, zeros behind it. Returns its largest magnitude.
template <class Number>
inline float take(const typename Number::Stored* from, size_t n, float* x) {
    F top{};
    size_t i = 0;
    for (; i + WIDTH <= n; i += WIDTH) {
        const F v = Number::read(from + i);
        store(x + i, v);
        top = most(top, magnitude(v));
    }
    if (i < n) {
        const F v = read_some<Number>(from + i, n - i);
        store(x + i, v);
        top = most(top, magnitude(v));
        i += WIDTH;
    }
    for (const size_t end = padded(n); i < end; i += WIDTH) store(x + i, F{});
    float found = 0;
    for (int lane = 0; lane < WIDTH; lane++) found = top[lane] > found ? top[lane] : found;
    return found;
}

// The scale of least squared error: 24 sizes times 2 signs scored in integers, the best refined by least squares, and once more against the codes under the scale
// as stored. `top` > 0 is the largest magnitude of x.
inline float searched(const float* x, size_t count, float top, const Rounding& a, float* unit, int16_t* whole) {
    const float low = a.low, high = a.high;
    for (size_t i = 0; i < count; i += WIDTH) {
        const F v = load<F>(x + i) / top;
        store(unit + i, v);
        put(whole + i, (U)integers(round_even(v * 32767.0f)), uint16_t());
    }
    double best = 0, mirrored[SIZES];
    int chosen = 0;
    for (int s = 0; s < SIZES; s++) {
        Energy plain, other;
        energies(whole, count, a.multipliers[s], a.shift, int16_t(low), int16_t(high), plain, other);
        mirrored[s] = other.share();
        if (s == 0 || plain.share() > best) best = plain.share(), chosen = s;
    }
    for (int s = 0; s < SIZES; s++)
        if (mirrored[s] > best) best = mirrored[s], chosen = SIZES + s;
    const float sign = chosen < SIZES ? 1.0f : -1.0f;
    const int32_t multiplier = a.multipliers[chosen % SIZES], half = 1 << (a.shift - 1);
    auto coarse = [&](size_t i) {
        const I scaled = (words(whole + i) * multiplier + 0x4000) >> 15;
        return least(most(floats((scaled + half) >> a.shift) * sign, all(low)), all(high));
    };
    auto refined = [&](auto codes) {
        const float own = ordered_sum(count, [&](size_t i) { const F c = codes(i); return c * c; });
        const float fit = ordered_sum(count, [&](size_t i) { return codes(i) * load<F>(unit + i); });
        return stored(fit / (own == 0 ? 1.0f : own) * top, a.scale_dtype);
    };
    auto error = [&](float scale) {
        const float ratio = scale / top, near = ratio == 0 ? 0x1p-126f : ratio;
        return ordered_sum(count, [&](size_t i) {
            const F u = load<F>(unit + i), d = round_within(u / near, low, high) * near - u;
            return d * d;
        });
    };
    const float scale = refined(coarse);
    const float again = refined([&](size_t i) { return round_within(load<F>(x + i) / scale, low, high); });
    return error(again) < error(scale) ? again : scale;
}

template <class Code>
inline void put_codes(int8_t* codes, size_t n, Code code) {
    for (size_t i = 0; i < n; i += WIDTH) {
        const I c = code(i);
        if (i + WIDTH <= n) put(codes + i, c, int8_t());
        else for (size_t j = i; j < n; j++) codes[j] = int8_t(c[j - i]);
    }
}

// Levels from the least value to the largest, 0 among them: value = (code - zero) * scale.
struct Range {
    float scale, zero;
};

inline Range ranged(float low, float high, float shrink, const Rounding& a) {
    low *= shrink, high *= shrink;
    const float steps = a.high - a.low, width = high - low;
    const float scale = stored(width == __builtin_inff() ? high / steps - low / steps : width / steps, a.scale_dtype);
    const float share = within(all(low / scale), -3.40282346638528859812e38f, 3.40282346638528859812e38f)[0];
    return {scale, round_within(all(a.low - share), a.low, a.high)[0]};
}

// Codes as float32; what lies far outside is as good as a thousand.
inline F ranged_code(F v, Range r, const Rounding& a) { return least(most(round_within(v / r.scale, -1024.0f, 1024.0f) + r.zero, all(a.low)), all(a.high)); }

inline Range range_of(const float* x, size_t n, size_t count, float top, const Rounding& a) {
    float low = 0, high = 0;
    for (size_t i = 0; i < n; i++) low = x[i] < low ? x[i] : low, high = x[i] > high ? x[i] : high;
    if (!a.search) return ranged(low, high, 1.0f, a);
    const float size = top == 0 ? 1.0f : top;
    Range best{};
    float error = 0;
    for (int s = 0; s < SIZES; s++) {
        const Range r = ranged(low, high, a.shrinks[s], a);
        const float found = ordered_sum(count, [&](size_t i) {
            const F v = load<F>(x + i), d = (ranged_code(v, r, a) - r.zero) * r.scale / size - v / size;
            return d * d;
        });
        if (s == 0 || found < error) error = found, best = r;
    }
    return best;
}

// Rows [first, last) of a matrix. `room`: 3 * padded(group) floats.
template <class Number>
void quantize_rows(const Rounding& a, int64_t first, int64_t last, float* room) {
    const size_t columns = a.columns, group = a.group, groups = (columns + group - 1) / group;
    float *x = room, *unit = room + padded(group);
    int16_t* whole = reinterpret_cast<int16_t*>(unit + padded(group));
    for (int64_t r = first; r < last; r++) {
        const auto* row = static_cast<const typename Number::Stored*>(a.values) + r * columns;
        for (size_t g = 0; g < groups; g++) {
            const size_t at = g * group, n = columns - at < group ? columns - at : group;
            const float top = take<Number>(row + at, n, x);
            if (a.zeros) {
                const Range range = range_of(x, n, padded(n), top, a);
                a.scales[r * groups + g] = range.scale, a.zeros[r * groups + g] = range.zero;
                put_codes(a.codes + r * columns + at, n, [&](size_t i) { return integers(ranged_code(load<F>(x + i), range, a)); });
                continue;
            }
            const float scale = a.search && top > 0 ? searched(x, padded(n), top, a, unit, whole) : stored(top / a.half_range, a.scale_dtype);
            a.scales[r * groups + g] = scale;
            put_codes(a.codes + r * columns + at, n, [&](size_t i) {
                const F level = load<F>(x + i) / scale;
                return a.floating ? Eighth::code(within(level, -Eighth::LARGEST, Eighth::LARGEST)) : integers(round_within(level, a.low, a.high));
            });
        }
    }
}

// value = (code - zero_point) * scale of rows [first, last).
template <class Number>
void dequantize_rows(const Uniform& a, int64_t first, int64_t last) {
    const size_t columns = a.columns, group = a.group, groups = (columns + group - 1) / group;
    const float bound = a.bounded && a.dtype == F16 ? Half::LARGEST : __builtin_inff();
    for (int64_t r = first; r < last; r++) {
        for (size_t g = 0; g < groups; g++) {
            const size_t at = g * group, n = columns - at < group ? columns - at : group, p = r / a.shared * groups + g;
            const int8_t* codes = a.codes + r * columns + at;
            auto* out = static_cast<typename Number::Stored*>(a.values) + r * columns + at;
            const float own = a.scales[p];  // whose NaN, which a file may have, gets the payload that rounding has room for
            const F scale = all(own == own ? own : __builtin_nanf("")), zero = all(a.zeros ? float(a.zeros[p]) : 0.0f);
            auto values = [&](const int8_t* c) { return least(most(((a.floating ? Eighth::value(bytes(c)) : floats(bytes(c))) - zero) * scale, all(-bound)), all(bound)); };
            size_t i = 0;
            for (; i + WIDTH <= n; i += WIDTH) Number::write(out + i, values(codes + i));
            if (i < n) {
                int8_t rest[WIDTH] = {};
                __builtin_memcpy(rest, codes + i, n - i);
                write_some<Number>(out + i, n - i, values(rest));
            }
        }
    }
}

}  // namespace
