// Levels under a scale and an offset: the search for both, and for integers that stand for them. The reference is worker/kernels/affine.py (`search`) and two_level.py (`refined`).
//
// Terms of sums are +0 behind the end of a group, as they are where the reference fills it up. Where a 0 has a sign, it changes no sum and no comparison here.
#pragma once

#include "arguments.hpp"
#include "vector.hpp"

namespace {

struct Line {
    float scale, offset;
};

// One group in units of its largest magnitude. All arrays have room for `count`, a multiple of 16 and, beyond 128, of 128.
struct Unit {
    float *x, *weight, *codes;  // no weight: null
    U* inside;                  // all ones before the end
    size_t n, count;
    float high;
    bool zero, anywhere;

    F at(const float* p, size_t i) const { return load<F>(p + i); }
    F kept(size_t i, F v) const { return (F)((U)v & load<U>(reinterpret_cast<const uint32_t*>(inside) + i)); }

    template <class Term>
    float sum(Term term) const {
        return ordered_sum(count, [&](size_t i) { return kept(i, term(i)); });
    }
    template <class Term>
    float mean(Term term) const {
        return sum(term) / float(n ? n : 1);
    }
    template <class Term>
    float weighed_mean(Term term) const {  // each term counting its weight
        if (!weight) return mean(term);
        const float total = sum([&](size_t i) { return at(weight, i); });
        return sum([&](size_t i) { return at(weight, i) * term(i); }) / (total < 1 ? 1.0f : total);
    }

    float zero_code(Line l) const {
        const F q = all(l.offset) / all(l.scale == 0 ? __builtin_inff() : l.scale);
        return round_within(q, 0, high)[0];
    }
    F encoded(size_t i, Line l, float z) const {
        const F v = at(x, i), code = round_within((v + l.offset) / all(l.scale == 0 ? __builtin_inff() : l.scale), 0, high);
        if (!zero) return code;
        const F none{}, own = all(z), sign = v > none ? all(1.0f) : v < none ? all(-1.0f) : none;
        const F beside = code == own ? least(most(own + sign, none), all(high)) : own;  // the level at z has moved: to or from its neighbours
        const F there = beside == own ? v : beside * l.scale - l.offset - v, here = code == own ? v : code * l.scale - l.offset - v;
        const F nearer = magnitude(there) < magnitude(here) ? beside : code;
        return v == none ? own : nearer;
    }
    F decoded(F code, Line l, float z) const {
        const F v = code * l.scale - l.offset;
        return zero ? (code == all(z) ? F{} : v) : v;
    }
    void encode(Line l) {
        const float z = zero ? zero_code(l) : 0;
        for (size_t i = 0; i < count; i += WIDTH) store(codes + i, encoded(i, l, z));
    }
    float loss(Line l) const {
        const float z = zero ? zero_code(l) : 0;
        return sum([&](size_t i) {
            const F d = decoded(encoded(i, l, z), l, z) - at(x, i), square = d * d;
            return weight ? square * at(weight, i) : square;
        });
    }

    // Of least squared error for `codes`; `given` where all of them are one and the same.
    Line fitted(Line given) const {
        const float c = weighed_mean([&](size_t i) { return at(codes, i); }), m = weighed_mean([&](size_t i) { return at(x, i); });
        auto weighed = [&](size_t i) {
            const F away = at(codes, i) - c;
            return weight ? away * at(weight, i) : away;
        };
        const float spread = mean([&](size_t i) { return weighed(i) * (at(codes, i) - c); }), together = mean([&](size_t i) { return weighed(i) * (at(x, i) - m); });
        float found = together / (spread == 0 ? 1.0f : spread), below = found * c - m;
        if (!anywhere) {  // no offset below 0: the line goes through it
            const float share = weight ? mean([&](size_t i) { return at(weight, i); }) : 1.0f, energy = spread + share * c * c;
            const float through = (together + share * c * m) / (energy == 0 ? 1.0f : energy);
            if (below < 0) found = through, below = 0;
        }
        return spread > 0 && found > 0 ? Line{found, below} : given;
    }
};

// In units of `size`, or of the largest magnitude (1 for zeros) where it is 0. `room`: 4 * count floats. Returns the size.
inline float take_unit(Unit& u, const float* x, const float* weight, size_t n, float size, float* room) {
    u.n = n, u.count = padded(n);
    u.x = room, u.codes = room + u.count, u.inside = reinterpret_cast<U*>(room + 2 * u.count), u.weight = weight ? room + 3 * u.count : nullptr;
    float top = 0;
    auto* inside = reinterpret_cast<uint32_t*>(u.inside);
    for (size_t i = 0; i < u.count; i++) {
        const float v = i < n ? x[i] : 0, own = v < 0 ? -v : v;
        const uint32_t bits = i < n ? ~0u : 0u;
        u.x[i] = v, top = own > top ? own : top;
        __builtin_memcpy(inside + i, &bits, 4);
        if (weight) u.weight[i] = i < n ? weight[i] : 0;
    }
    if (size != 0) top = size;
    if (top == 0) top = 1;
    for (size_t i = 0; i < u.count; i += WIDTH) store(u.x + i, load<F>(u.x + i) / top);
    return top;
}

// Scale and offset of groups [first, last).
inline void affine_groups(const Affine& a, int64_t first, int64_t last, float* room) {
    Unit u{};
    u.high = a.high, u.zero = a.zero, u.anywhere = a.anywhere;
    for (int64_t g = first; g < last; g++) {
        const float size = take_unit(u, a.values + g * a.size, a.weights ? a.weights + g * a.size : nullptr, size_t(a.size), 0, room);
        float low = __builtin_inff(), high = -__builtin_inff();
        for (size_t i = 0; i < u.n; i++)
            if (!u.weight || u.weight[i] != 0) low = u.x[i] < low ? u.x[i] : low, high = u.x[i] > high ? u.x[i] : high;
        if (!u.anywhere || low >= high) low = low < 0 ? low : 0, high = high > 0 ? high : 0;
        const float middle = (low + high) * 0.5f, width = high - low;
        Line best{width / u.high, -low};
        float error = u.loss(best);
        auto better = [&](Line l) {
            const float found = u.loss(l);
            if (found < error) error = found, best = l;
        };
        for (const float c : a.widths) {
            Line l{width * c / u.high, width * (0.5f * c) - middle};
            if (!u.anywhere && l.offset < 0) l.offset = 0;
            u.encode(l);
            better(u.fitted(l));
        }
        for (int i = 0; i < a.polish; i++) {
            u.encode(best);
            better(u.fitted(best));
        }
        a.scales[g] = best.scale * size, a.offsets[g] = best.offset * size;
    }
}

// Integers for scales, and for offsets, of groups [first, last), each moved by one where that loses less, twice.
inline void refine_groups(const Refine& a, int64_t first, int64_t last, float* room) {
    Unit u{};
    u.high = a.high, u.zero = a.zero;
    auto bounded = [&](float code) { return code < a.least ? a.least : code > a.most ? a.most : code; };
    for (int64_t g = first; g < last; g++) {
        const float size = take_unit(u, a.values + g * a.size, a.weights ? a.weights + g * a.size : nullptr, size_t(a.size), a.sizes[g / a.each], room);
        const float d = a.scale_above[g / a.each] * a.power / size, m = a.offset_above ? a.offset_above[g / a.each] * a.power / size : 0;
        auto loss = [&](float scale, float offset) {
            if (a.offset_codes) return u.loss({scale, offset});
            const F by = all(scale == 0 ? __builtin_inff() : scale);
            return u.sum([&](size_t i) {
                const F v = u.at(u.x, i), e = round_within(v / by, a.low, a.high) * scale - v, square = e * e;
                return u.weight ? square * u.at(u.weight, i) : square;
            });
        };
        float best = a.scale_codes[g], best_offset = a.offset_codes ? a.offset_codes[g] : 0, error = loss(d * best, m * best_offset);
        auto keep = [&](float code, float offset_code) {
            const float found = loss(d * code, m * offset_code);
            if (found < error) error = found, best = code, best_offset = offset_code;
        };
        for (int round = 0; round < a.rounds; round++) {
            const float start = best, start_offset = best_offset;
            for (float move = -1; move <= 1; move++) {
                const float code = bounded(start + move), scale = d * code;
                if (!a.offset_codes) {
                    keep(code, 0);
                    continue;
                }
                u.encode({scale, m * start_offset});
                const F near = all(u.weighed_mean([&](size_t i) { return u.at(u.codes, i) * scale - u.at(u.x, i); })) / all(m == 0 ? __builtin_inff() : m);
                const float bound = 3.40282346638528859812e38f, fitted = __builtin_floorf(within(near, -bound, bound)[0]);
                keep(code, bounded(fitted)), keep(code, bounded(fitted + 1));
            }
        }
        a.scale_codes[g] = best;
        if (a.offset_codes) a.offset_codes[g] = best_offset;
    }
}

}  // namespace
