// The lowest of many magnitudes, exactly, ties by position. The reference is worker/kernels/select.py.
//
// Magnitudes order as their bits do. Those of each row are in rows.hpp.
#include <cstring>
#include <memory>
#include <mutex>

#include "arguments.hpp"
#include "threads.hpp"

namespace {

constexpr int64_t PIECE = 1 << 16;
constexpr int DIGIT = 16;  // bits that a histogram over everything counts

template <class To, class From>
To as(From x) {
    To to;
    static_assert(sizeof to == sizeof x);
    memcpy(&to, &x, sizeof to);
    return to;
}

struct Single {
    using Key = uint32_t;
    static Key at(const void* v, int64_t i) { return static_cast<const uint32_t*>(v)[i] & 0x7fffffffu; }
};
struct Half {  // as a float32; see numbers.hpp
    using Key = uint32_t;
    static Key at(const void* v, int64_t i) { return as<Key>(as<float>((static_cast<const uint16_t*>(v)[i] & 0x7fffu) << 13) * 0x1p112f); }
};
struct Brain {
    using Key = uint32_t;
    static Key at(const void* v, int64_t i) { return (static_cast<const uint16_t*>(v)[i] & 0x7fffu) << 16; }
};
struct Double {
    using Key = uint64_t;
    static Key at(const void* v, int64_t i) { return static_cast<const uint64_t*>(v)[i] & 0x7fffffffffffffffu; }
};

template <class F>
auto with(int dtype, F f) {
    return dtype == 0 ? f(Single{}) : dtype == 1 ? f(Half{}) : dtype == 2 ? f(Brain{}) : f(Double{});
}

}  // namespace

#define EXPORT extern "C" __attribute__((visibility("default")))

// Adds to counts[digit], for each key whose bits above `shift` + 16 are `prefix`, the digit being its 16 bits from `shift` on.
EXPORT int modelpress_histogram(const void* values, int dtype, int64_t count, int shift, uint64_t prefix, int64_t* counts, int threads) try {
    std::mutex adding;
    const int64_t step = std::max<int64_t>(PIECE, (count + threads - 1) / std::max(1, threads));
    std::atomic<int> failed{0};
    share(count, step, threads, [&](int64_t first, int64_t last) {
        std::unique_ptr<uint32_t[]> own(new (std::nothrow) uint32_t[2 << DIGIT]());
        if (!own) {
            failed = 1;
            return;
        }
        uint32_t *even = own.get(), *odd = even + (1 << DIGIT);  // equal neighbours do not wait for each other's count
        with(dtype, [&](auto number) {
            using Number = decltype(number);
            const int above = shift + DIGIT, width = int(sizeof(typename Number::Key)) * 8;
            if (above >= width) {  // all of them
                int64_t i = first;
                for (; i + 4 <= last; i += 4) {
                    const size_t a = size_t(Number::at(values, i) >> shift), b = size_t(Number::at(values, i + 1) >> shift), c = size_t(Number::at(values, i + 2) >> shift), d = size_t(Number::at(values, i + 3) >> shift);
                    even[a]++, odd[b]++, even[c]++, odd[d]++;
                }
                for (; i < last; i++) even[Number::at(values, i) >> shift]++;
                return;
            }
            for (int64_t i = first; i < last; i++) {
                const auto key = Number::at(values, i);
                if (key >> above == prefix) (i & 1 ? odd : even)[key >> shift & 0xffff]++;
            }
        });
        const std::lock_guard lock(adding);
        for (int64_t d = 0; d < 1 << DIGIT; d++) counts[d] += int64_t(even[d]) + odd[d];
    });
    return failed;
} catch (...) {
    return 1;
}

// 1 for every key below `key`, and for the first `ties` of those that equal it. Returns how many equal ones there are, or -1 where memory is short.
EXPORT int64_t modelpress_lowest(const void* values, int dtype, int64_t count, uint64_t key, int64_t ties, uint8_t* out, int threads) try {
    std::vector<int64_t> equal((count + PIECE - 1) / PIECE + 1, 0);
    share(count, PIECE, threads, [&](int64_t first, int64_t last) {
        with(dtype, [&](auto number) {
            int64_t found = 0;
            for (int64_t i = first; i < last; i++) {
                const uint64_t own = decltype(number)::at(values, i);
                out[i] = own < key;
                found += own == key;
            }
            equal[first / PIECE + 1] = found;
        });
    });
    for (size_t p = 1; p < equal.size(); p++) equal[p] += equal[p - 1];
    if (ties)
        share(count, PIECE, threads, [&](int64_t first, int64_t last) {
            with(dtype, [&](auto number) {
                int64_t left = ties - equal[first / PIECE];
                for (int64_t i = first; i < last && left > 0; i++)
                    if (decltype(number)::at(values, i) == key) out[i] = 1, left--;
            });
        });
    return equal.back();
} catch (...) {
    return -1;
}
