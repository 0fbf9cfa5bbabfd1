// Codes in contexts, bit by bit: worker/kernels/contexts.py, mixing.py and range_coder.py, which are the reference. Integers only, so every machine finds the same. The caller's thread does it.
#include <cstddef>
#include <cstdint>
#include <new>
#include <vector>

namespace {

constexpr uint32_t START = 1u << 31, LIMIT = 1023, TOP = 1u << 24;
constexpr int32_t ONE = 1 << 22;
constexpr int64_t WEIGHT = 20480;

struct Curves {
    const int16_t* stretch;  // [4096]
    const int32_t* squash;   // [4096], a negative index counts from the end
};

struct Encoder {
    uint64_t low = 0;
    uint32_t range = 0xffffffffu;
    uint8_t *out, *end;
    int64_t size = 0;
    bool full = false;

    int code(uint32_t p, int bit) {
        const uint32_t bound = (range >> 16) * p;
        if (bit) range = bound;
        else low += bound, range -= bound;
        for (; range < TOP; range <<= 8) shift();
        return bit;
    }
    void shift() {
        if (low >> 32) {  // a carry, as far as bytes of 255 go
            low &= 0xffffffffu;
            int64_t at = size - 1;
            while (at >= 0 && out[at] == 255) out[at--] = 0;
            if (at >= 0) out[at]++;
        }
        if (out + size < end) out[size++] = uint8_t(low >> 24);
        else full = true;
        low = low << 8 & 0xffffffffu;
    }
    void finish() {  // the number in the interval that ends in the most zeros
        for (int zeros = 24; zeros >= 0; zeros -= 8) {
            const uint64_t number = (low + (uint64_t(1) << zeros) - 1) >> zeros << zeros;
            if (number < low + range || !zeros) {
                low = number;
                break;
            }
        }
        for (int i = 0; i < 4; i++) shift();
        while (size && !out[size - 1]) size--;
    }
};

struct Decoder {
    const uint8_t *at, *end;
    uint32_t value = 0, range = 0xffffffffu;

    Decoder(const uint8_t* body, int64_t size) : at(body), end(body + size) {
        for (int i = 0; i < 4; i++) value = value << 8 | next();
    }
    uint32_t next() { return at < end ? *at++ : 0; }
    int code(uint32_t p, int) {
        const uint32_t bound = (range >> 16) * p;
        const int bit = value < bound;
        if (bit) range = bound;
        else value -= bound, range -= bound;
        for (; range < TOP; range <<= 8) value = value << 8 | next();
        return bit;
    }
};

template <class Coder>
class Mixed {
    Coder& coder;
    const Curves& curves;
    std::vector<uint32_t> first, second, third;
    std::vector<int64_t> weights;

    static void update(uint32_t& state, int32_t target) {
        const uint32_t n = state & LIMIT;
        const int32_t p = int32_t(state >> 10);
        const int64_t rate = 131072 / (2 * n + 3);
        state = uint32_t(p + int32_t((target - p) * rate >> 16)) << 10 | (n < LIMIT ? n + 1 : n);
    }

public:
    Mixed(Coder& coder, const Curves& curves, size_t a, size_t b, size_t c, size_t sets)
        : coder(coder), curves(curves), first(a, START), second(b, START), third(c, START), weights(3 * sets, WEIGHT) {}

    int code(size_t a, size_t b, size_t c, size_t chosen, int bit) {
        uint32_t &p0 = first[a], &p1 = second[b], &p2 = third[c];
        int64_t* w = &weights[3 * chosen];
        const int64_t s0 = curves.stretch[p0 >> 20], s1 = curves.stretch[p1 >> 20], s2 = curves.stretch[p2 >> 20];
        int64_t d = (w[0] * s0 + w[1] * s1 + w[2] * s2) >> 16;
        d = d < -2047 ? -2047 : d > 2047 ? 2047 : d;
        const int32_t p = curves.squash[d & 4095];
        bit = coder.code(uint32_t(p), bit);
        const int32_t target = bit ? ONE : 0;
        const int64_t error = bit ? 65536 - p : -p;
        update(p0, target), update(p1, target), update(p2, target);
        w[0] += error * s0 >> 15, w[1] += error * s1 >> 15, w[2] += error * s2 >> 15;
        return bit;
    }
};

int bits(uint64_t x) { return x ? 64 - __builtin_clzll(x) : 0; }

// 0, 1, 2, 3, 4-5, 6-7, 8-11, ...: two for every power of two, of 4095 at most
size_t bucket(int64_t x) {
    if (x > 4095) x = 4095;
    const int b = bits(uint64_t(x));
    return b < 2 ? size_t(x) : size_t(2 * b - 2 + (x >> (b - 2) & 1));
}

// `codes` are read by an encoder and written by a decoder. Returns whether all of them fit a byte.
template <class Coder, bool ENCODES>
bool run(Coder& coder, const Curves& curves, uint8_t* codes, int64_t count, int64_t columns, int zero, int depth, int64_t lag) {
    Mixed<Coder> flag(coder, curves, 32 << 4, 32 << 4, 64 << 4, 16), number(coder, curves, size_t(1) << depth, size_t(17) << depth, size_t(64) << depth, size_t(1) << depth);
    const int64_t before = 2 * lag + 1, wide = columns < count ? columns : count;
    std::vector<int16_t> offset(before + count);  // code - zero of every value, and of those before the first
    std::vector<int8_t> sign(before + count);
    std::vector<int64_t> total(wide + 2);  // flags so far in every column, and in none on both sides
    const int coarse = depth > 3 ? depth - 3 : 0;
    for (int64_t start = 0, row = 0; start < count; start += columns, row++) {
        int64_t held = 0;
        const size_t age = size_t(bits(uint64_t(row)) < 15 ? bits(uint64_t(row)) : 15);
        for (int64_t c = 0; c < columns && c < count - start; c++) {
            const int64_t i = before + start + c;
            const int8_t* const s = sign.data() + i;
            const int left = s[-1], left2 = s[-2], up = s[-lag], up2 = s[-2 * lag], up_right = s[1 - lag], up_left = s[-1 - lag];
            const size_t around = size_t(left != 0) | size_t(left2 != 0) << 1 | size_t(up != 0) << 2 | size_t(up2 != 0) << 3 | size_t(up_right != 0) << 4 | size_t(up_left != 0) << 5;
            int64_t* const t = total.data() + c + 1;
            const size_t dense = bucket(32 * (2 * t[0] + t[-1] + t[1]) / (row + 2));
            const int bit = flag.code(size_t(t[0] < 31 ? t[0] : 31) << 4 | age, bucket(held) << 4 | size_t(16 * c / columns), around << 4 | (dense < 15 ? dense : 15), age, ENCODES && codes[start + c] != zero);
            if (!bit) {
                if (!ENCODES) codes[start + c] = uint8_t(zero);
                continue;
            }
            held++, t[0]++;
            const size_t signs = size_t(2 * (left + up) + left2 + up2 + up_right + up_left + 8);
            const int16_t* const o = offset.data() + i;
            int size = (2 * (o[-1] + o[-lag]) + o[1 - lag] + o[-1 - lag]) >> coarse;
            size = size < -32 ? 0 : size > 31 ? 63 : size + 32;
            const int own = ENCODES ? codes[start + c] - (codes[start + c] > zero) : 0;
            size_t node = 1;
            for (int b = depth - 1; b >= 0; b--) node = 2 * node + size_t(number.code(node, signs << depth | node, size_t(size) << depth | node, node, own >> b & 1));
            int value = int(node) - (1 << depth);
            value += value >= zero;
            if (value > 255) return false;
            if (!ENCODES) codes[start + c] = uint8_t(value);
            offset[i] = int16_t(value - zero);
            sign[i] = value > zero ? 1 : -1;
        }
    }
    return true;
}

}  // namespace

#define EXPORT extern "C" __attribute__((visibility("default")))

// Returns how many bytes the bits take, at most `room`; -1 where memory is short.
EXPORT int64_t modelpress_contexts_encode(const uint8_t* codes, int64_t count, int64_t columns, int zero, int depth, int64_t lag, const int16_t* stretch, const int32_t* squash, uint8_t* out, int64_t room) try {
    Encoder coder{.out = out, .end = out + room};
    run<Encoder, true>(coder, {stretch, squash}, const_cast<uint8_t*>(codes), count, columns, zero, depth, lag);
    coder.finish();
    return coder.full ? -1 : coder.size;
} catch (const std::bad_alloc&) {
    return -1;
}

// Codes [count] of `size` bytes of bits. Returns 0, 1 where memory is short, 2 where a code exceeds a byte.
EXPORT int modelpress_contexts_decode(const uint8_t* body, int64_t size, int64_t count, int64_t columns, int zero, int depth, int64_t lag, const int16_t* stretch, const int32_t* squash, uint8_t* codes) try {
    Decoder coder(body, size);
    return run<Decoder, false>(coder, {stretch, squash}, codes, count, columns, zero, depth, lag) ? 0 : 2;
} catch (const std::bad_alloc&) {
    return 1;
}
