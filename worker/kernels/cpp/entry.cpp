// What Python calls (worker/kernels/native.py): checked arguments in, the best kernels of this processor run by some threads. Returns 0, or 1 where memory is short.
#include <cstddef>
#include <new>

#include "arguments.hpp"
#include "threads.hpp"

extern const Kernels baseline_kernels;
#if defined(__x86_64__)
extern const Kernels avx2_kernels, avx512_kernels;
#endif

namespace {

constexpr int64_t PIECE = 1 << 16;  // elements that one thread takes at a time

int supported() {
#if defined(__x86_64__)
    const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi2");
    return avx2 && avx512 ? 2 : avx2 ? 1 : 0;
#else
    return 0;
#endif
}

std::atomic<int> level{supported()};

const Kernels& kernels() {
#if defined(__x86_64__)
    return level == 2 ? avx512_kernels : level == 1 ? avx2_kernels : baseline_kernels;
#else
    return baseline_kernels;
#endif
}

int64_t rows_of_a_piece(int64_t columns) { return std::max<int64_t>(1, PIECE / std::max<int64_t>(1, columns)); }

// Some groups of an Affine or a Refine at a time, with room for four arrays of one.
template <class Call, class Work>
int groups(const Call& a, int threads, Work work) {
    std::atomic<int> failed{0};
    share(a.groups, std::max<int64_t>(1, PIECE / 16 / std::max<int64_t>(1, a.size)), threads, [&](int64_t first, int64_t last) {
        auto* room = new (std::nothrow) float[4 * (a.size + 128)];
        if (room) work(a, first, last, room);
        else failed = 1;
        delete[] room;
    });
    return failed;
}

}  // namespace

#define EXPORT extern "C" __attribute__((visibility("default")))

// By which Python sees that it was built from the same sources.
EXPORT void modelpress_sizes(int64_t* sizes) {
    for (const size_t size : {sizeof(Rounding), sizeof(Uniform), sizeof(AliasEncode), sizeof(AliasDecode), sizeof(Extent), sizeof(Difference), sizeof(Affine), sizeof(Refine), sizeof(Compensate)}) *sizes++ = int64_t(size);
}

// 0 baseline, 1 AVX2, 2 AVX-512. Returns what is in use: never more than the processor has.
EXPORT int modelpress_use(int wanted) {
    if (wanted >= 0) level = std::min(wanted, supported());
    return level;
}

EXPORT int modelpress_quantize(const Rounding* a, int threads) {
    std::atomic<int> failed{0};
    share(a->rows, rows_of_a_piece(a->columns), threads, [&](int64_t first, int64_t last) {
        auto* room = new (std::nothrow) float[3 * (a->group + 128)];
        if (room) kernels().quantize(*a, first, last, room);
        else failed = 1;
        delete[] room;
    });
    return failed;
}

EXPORT int modelpress_affine(const Affine* a, int threads) { return groups(*a, threads, kernels().affine); }
EXPORT int modelpress_refine(const Refine* a, int threads) { return groups(*a, threads, kernels().refine); }

EXPORT int modelpress_compensate(const Compensate* a, int threads) {
    std::atomic<int> failed{0};
    share(a->rows, 64, threads, [&](int64_t first, int64_t last) {
        auto* room = new (std::nothrow) float[16 * a->width];
        if (room) kernels().compensate(*a, first, last, room);
        else failed = 1;
        delete[] room;
    });
    return failed;
}

EXPORT void modelpress_dequantize(const Uniform* a, int threads) {
    share(a->rows, rows_of_a_piece(a->columns), threads, [&](int64_t first, int64_t last) { kernels().dequantize(*a, first, last); });
}

// Sums of pieces are added in their order, whoever made them.
EXPORT int modelpress_compare(const void* a, const void* b, int dtype, int64_t count, int threads, Difference* sums) try {
    std::vector<Difference> pieces((count + PIECE - 1) / PIECE, Difference{});
    share(count, PIECE, threads, [&](int64_t first, int64_t last) { kernels().compare(a, b, dtype, first, last, pieces[first / PIECE]); });
    *sums = {};
    for (const auto& p : pieces) {
        sums->signal += p.signal, sums->energy += p.energy, sums->dot += p.dot, sums->noise += p.noise, sums->zeros += p.zeros;
    }
    return 0;
} catch (const std::bad_alloc&) {
    return 1;
}

EXPORT void modelpress_extents(const void* values, int dtype, int64_t rows, int64_t columns, int64_t group, int threads, Extent* found) {
    const int64_t step = rows_of_a_piece(columns);
    std::atomic<float> least{__builtin_inff()}, most{0};
    share(rows, step, threads, [&](int64_t first, int64_t last) {
        Extent here{__builtin_inff(), 0};
        kernels().extents(values, dtype, columns, group, first, last, here);
        for (float seen = least; here.least < seen && !least.compare_exchange_weak(seen, here.least);) {}
        for (float seen = most; here.most > seen && !most.compare_exchange_weak(seen, here.most);) {}
    });
    *found = {least, most};
}

EXPORT void modelpress_masked(const void* values, const uint8_t* kept, int dtype, int64_t count, void* out, int threads) {
    share(count, PIECE, threads, [&](int64_t first, int64_t last) { kernels().masked(values, kept, dtype, first, last, out); });
}

EXPORT int modelpress_finite(const void* values, int dtype, int64_t count, int threads) {
    std::atomic<bool> finite{true};
    share(count, PIECE, threads, [&](int64_t first, int64_t last) {
        if (finite && !kernels().finite(values, dtype, first, last)) finite = false;
    });
    return finite;
}

// Pieces of PIECE codes start on a byte of their own.
EXPORT void modelpress_pack(const uint8_t* codes, int64_t count, int num_bits, uint8_t bias, uint8_t* out, int threads) {
    share(count, PIECE, threads, [&](int64_t first, int64_t last) { kernels().pack(codes + first, last - first, num_bits, bias, out + first / 8 * num_bits); });
}

EXPORT void modelpress_unpack(const uint8_t* packed, int64_t count, int num_bits, uint8_t bias, uint8_t* out, int threads) {
    share(count, PIECE, threads, [&](int64_t first, int64_t last) { kernels().unpack(packed + first / 8 * num_bits, last - first, num_bits, bias, out + first); });
}

// 1 for the k lowest of each row, 1 <= k < columns; values of 2, 4 or 8 bytes.
EXPORT int modelpress_lowest_per_row(const void* values, int width, int64_t rows, int64_t columns, int64_t k, uint8_t* out, int threads) {
    std::atomic<int> failed{0};
    share(rows, rows_of_a_piece(columns), threads, [&](int64_t first, int64_t last) {
        auto* room = new (std::nothrow) int64_t[(columns * width + 7) / 8];
        if (room) kernels().mark_rows(values, width, columns, k, first, last, out + first * columns, room);
        else failed = 1;
        delete[] room;
    });
    return failed;
}

// One chunk of a payload each, on the caller's thread: whoever calls has several.
EXPORT int64_t modelpress_ranks(const uint8_t* bytes, int64_t count, const uint8_t* symbols, uint8_t* ranks, uint8_t* escapes, int64_t room) {
    return kernels().ranks(bytes, count, symbols, ranks, escapes, room);
}

// Slots [4096] of ranks one after another (see alias.py); false where the entries do not come to as many.
EXPORT int modelpress_slots(const uint32_t* first, const uint32_t* second, const uint8_t* last, const uint32_t* starts, uint16_t* slots) {
    for (uint32_t slot = 0; slot < 4096; slot++) {
        const uint32_t e = (slot & 255) > last[slot >> 8] ? second[slot >> 8] : first[slot >> 8], at = starts[e >> 12 & 15] + slot + (e >> 16) - 4096;
        if (at >= 4096) return 0;
        slots[at] = uint16_t(slot);
    }
    return 1;
}

EXPORT int64_t modelpress_alias_encode(const AliasEncode* a) { return kernels().encode(*a); }
EXPORT int modelpress_alias_decode(const AliasDecode* a) { return kernels().decode(*a); }
EXPORT void modelpress_split(const void* values, int width, int64_t count, uint8_t* planes) { kernels().split(values, width, count, planes); }
EXPORT int64_t modelpress_compact(const void* values, int width, int64_t count, uint8_t* mask, void* out, int64_t* negative) {
    return kernels().compact(values, width, count, mask, out, *negative);
}
EXPORT int modelpress_spread(const uint8_t* mask, const void* values, int width, int64_t kept, int64_t count, void* out) { return kernels().spread(mask, values, width, kept, count, out); }
EXPORT void modelpress_merge(const uint8_t* const* planes, int width, int64_t count, void* values) { kernels().merge(planes, width, count, values); }

EXPORT void modelpress_bytes(const uint8_t* bytes, int64_t count, int64_t* histogram) {
    uint32_t own[4][256] = {};  // equal neighbours do not wait for each other's count
    int64_t i = 0;
    for (; i + 8 <= count; i += 8) {
        uint64_t w;
        __builtin_memcpy(&w, bytes + i, 8);
        for (int b = 0; b < 8; b++) own[b & 3][w >> 8 * b & 255]++;
    }
    for (; i < count; i++) own[0][bytes[i]]++;
    for (int b = 0; b < 256; b++) histogram[b] = int64_t(own[0][b]) + own[1][b] + own[2][b] + own[3][b];
}
