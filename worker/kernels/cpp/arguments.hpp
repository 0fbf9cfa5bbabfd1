// What the kernels are called with. Plain structs, shared with worker/kernels/native.py.
#pragma once

#include <cstdint>

constexpr int SIZES = 24;  // scales tried per sign

struct Rounding {        // quantize a matrix [rows, columns], row-major
    const void* values;  // of `dtype`
    int8_t* codes;       // [rows, columns], or the bytes of e4m3
    float* scales;       // [rows, ceil(columns / group)], each as it reads back once it was stored
    int64_t rows, columns, group;
    int32_t dtype, scale_dtype, search, shift, floating;  // floating: codes are e4m3
    float half_range, low, high;
    int16_t multipliers[SIZES];  // a unit of 32767 times this, shifted by 15 + `shift`, is a code
    float* zeros;                // zero points, like scales, or null where symmetric
    float shrinks[SIZES];        // of the range, where there are zero points
};

struct Uniform {  // codes back to values
    const int8_t* codes;
    const float* scales;
    const int8_t* zeros;  // like scales, or null
    void* values;         // of `dtype`
    int64_t rows, columns, group, shared;  // rows that one row of scales stands for
    int32_t dtype, bounded, floating;      // float16 stays finite; codes are e4m3
};

constexpr int WIDTHS = 12;  // of the range, tried about its middle

struct Affine {  // scale and offset of each of `groups` groups of `size` values
    const float *values, *weights;  // [groups, size]; weights may be null
    float *scales, *offsets;        // [groups]
    int64_t groups, size;
    int32_t zero, anywhere, polish;
    float high, widths[WIDTHS];
};

struct Refine {  // integers for scales (and offsets, or null) of groups, `each` of which share a float above
    const float *values, *weights;             // as in Affine
    float *scale_codes, *offset_codes;         // [groups], in place
    const float *scale_above, *offset_above;   // [groups / each]
    const float* sizes;                        // [groups / each], in units of which errors are
    int64_t groups, size, each;
    int32_t zero, rounds;
    float low, high, least, most, power;       // bounds of codes of values, and of scales; 2^exponent
};

struct Compensate {        // rows of a block of `width` inputs, see compensate.hpp
    float *block, *errors, *codes;       // block and codes: rows `stride` apart; errors: `width` apart
    const float *upper, *scales, *zeros; // [width, width], rows `upper_stride` apart; [rows]; zeros may be null
    const uint8_t* kept;                 // like block, or null
    int64_t rows, stride, upper_stride, first, last, width;  // inputs [first, last) are rounded, those behind make up
    float low, high;
};

struct Extent {  // of the largest magnitudes of groups
    float least, most;  // `least` of those that are not 0
};

struct Difference {  // sums over two arrays of one dtype
    double signal, energy, dot, noise;
    int64_t zeros;
};

struct AliasEncode {             // see alias.hpp
    const uint8_t* ranks;        // [count], below 16
    const uint32_t* frequencies; // [16]: frequency | start << 16
    const uint16_t* slots;       // [4096 + 1]: where the r-th slot of a symbol lies, from its start on
    uint16_t* words;             // [count]
    uint32_t* states;            // [64]
    int64_t count;
};

struct AliasDecode {
    const uint8_t* symbols;                  // [16]
    const uint32_t *first, *second;          // [16]: of each bucket, frequency | rank << 12 | (offset + 4096) << 16
    const uint8_t* last;                     // [16]: in each bucket, the last slot of the first
    const uint8_t *states, *words, *escapes; // as they lie in the stream: u32 [64], u16, u8
    uint8_t* out;                            // [count]
    int64_t count, words_count, escapes_count;
};

// One set of kernels per instruction set.
struct Kernels {
    void (*quantize)(const Rounding&, int64_t first, int64_t last, float* room);
    void (*affine)(const Affine&, int64_t first, int64_t last, float* room);
    void (*refine)(const Refine&, int64_t first, int64_t last, float* room);
    void (*compensate)(const Compensate&, int64_t first, int64_t last, float* room);
    void (*dequantize)(const Uniform&, int64_t first, int64_t last);
    void (*compare)(const void* a, const void* b, int dtype, int64_t first, int64_t last, Difference& sums);
    void (*extents)(const void* values, int dtype, int64_t columns, int64_t group, int64_t first, int64_t last, Extent& found);
    void (*masked)(const void* values, const uint8_t* kept, int dtype, int64_t first, int64_t last, void* out);
    void (*mark_rows)(const void* values, int width, int64_t columns, int64_t k, int64_t first, int64_t last, uint8_t* out, void* room);
    int64_t (*ranks)(const uint8_t* bytes, int64_t count, const uint8_t* symbols, uint8_t* ranks, uint8_t* escapes, int64_t room);
    int64_t (*encode)(const AliasEncode&);
    int (*decode)(const AliasDecode&);
    void (*split)(const void* values, int width, int64_t count, uint8_t* planes);
    void (*merge)(const uint8_t* const* planes, int width, int64_t count, void* values);
    int64_t (*compact)(const void* values, int width, int64_t count, uint8_t* mask, void* out, int64_t& negative);
    bool (*spread)(const uint8_t* mask, const void* values, int width, int64_t kept, int64_t count, void* out);
    bool (*finite)(const void* values, int dtype, int64_t first, int64_t last);
    void (*pack)(const uint8_t* codes, int64_t count, int num_bits, uint8_t bias, uint8_t* out);
    void (*unpack)(const uint8_t* packed, int64_t count, int num_bits, uint8_t bias, uint8_t* out);
};
