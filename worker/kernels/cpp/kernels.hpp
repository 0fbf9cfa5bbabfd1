// All kernels once, for the instruction set of the file that includes this.
#pragma once

#include "alias.hpp"
#include "arrays.hpp"
#include "planes.hpp"
#include "rows.hpp"
#include "sparse.hpp"
#include "uniform.hpp"

#include "affine.hpp"
#include "compensate.hpp"

namespace {

template <class F>
inline auto with(int dtype, F f) {
    return dtype == F16 ? f(Half{}) : dtype == BF16 ? f(Brain{}) : f(Single{});
}

template <class F>
inline auto with_words(int width, F f) {
    return width == 1 ? f(uint8_t()) : width == 2 ? f(uint16_t()) : width == 4 ? f(uint32_t()) : f(uint64_t());
}

template <class F>
inline void with_bits(int b, F f) {
    switch (b) {
        case 1: return f.template operator()<1>();
        case 2: return f.template operator()<2>();
        case 3: return f.template operator()<3>();
        case 4: return f.template operator()<4>();
        case 5: return f.template operator()<5>();
        case 6: return f.template operator()<6>();
        case 7: return f.template operator()<7>();
        default: return f.template operator()<8>();
    }
}

constexpr Kernels KERNELS = {
    [](const Rounding& a, int64_t first, int64_t last, float* room) { with(a.dtype, [&](auto n) { quantize_rows<decltype(n)>(a, first, last, room); }); },
    affine_groups,
    refine_groups,
    compensate_rows,
    [](const Uniform& a, int64_t first, int64_t last) { with(a.dtype, [&](auto n) { dequantize_rows<decltype(n)>(a, first, last); }); },
    [](const void* a, const void* b, int dtype, int64_t first, int64_t last, Difference& sums) {
        with(dtype, [&](auto n) { compare_range<decltype(n)>(a, b, first, last, sums); });
    },
    [](const void* v, int dtype, int64_t columns, int64_t group, int64_t first, int64_t last, Extent& found) {
        with(dtype, [&](auto n) { extents_of_rows<decltype(n)>(v, columns, group, first, last, found); });
    },
    [](const void* v, const uint8_t* kept, int dtype, int64_t first, int64_t last, void* out) {
        with(dtype, [&](auto n) { masked_range<decltype(n)>(v, kept, first, last, out); });
    },
    [](const void* v, int width, int64_t columns, int64_t k, int64_t first, int64_t last, uint8_t* out, void* room) {
        if (width == 2) mark_rows<int16_t>(v, columns, k, first, last, out, room);
        else if (width == 4) mark_rows<int32_t>(v, columns, k, first, last, out, room);
        else mark_rows<int64_t>(v, columns, k, first, last, out, room);
    },
    ranks_of,
    alias_encode,
    alias_decode,
    [](const void* v, int width, int64_t n, uint8_t* planes) {
        if (width == 2) split_floats(static_cast<const uint16_t*>(v), n, planes);
        else split_floats(static_cast<const uint32_t*>(v), n, planes);
    },
    [](const uint8_t* const* planes, int width, int64_t n, void* v) {
        if (width == 2) merge_floats(planes, n, static_cast<uint16_t*>(v));
        else merge_floats(planes, n, static_cast<uint32_t*>(v));
    },
    [](const void* v, int width, int64_t n, uint8_t* mask, void* out, int64_t& negative) {
        return with_words(width, [&](auto w) { return compact(static_cast<const decltype(w)*>(v), n, mask, static_cast<decltype(w)*>(out), negative); });
    },
    [](const uint8_t* mask, const void* v, int width, int64_t kept, int64_t n, void* out) {
        return with_words(width, [&](auto w) { return spread(mask, static_cast<const decltype(w)*>(v), kept, n, static_cast<decltype(w)*>(out)); });
    },
    [](const void* v, int dtype, int64_t first, int64_t last) { return with(dtype, [&](auto n) { return finite_range<decltype(n)>(v, first, last); }); },
    [](const uint8_t* codes, int64_t count, int b, uint8_t bias, uint8_t* out) { with_bits(b, [&]<int B>() { pack_codes<B>(codes, count, bias, out); }); },
    [](const uint8_t* packed, int64_t count, int b, uint8_t bias, uint8_t* out) { with_bits(b, [&]<int B>() { unpack_codes<B>(packed, count, bias, out); }); },
};

}  // namespace
