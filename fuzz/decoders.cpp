// Fuzz target of the native decoders: what a packed file gives them is a stranger's. Under libFuzzer (clang), or with edges.cpp (g++).
//
//     byte 0      decoder: alias, unpack, merge, dequantize, spread, contexts, turns
//     byte 1      instruction set
//     byte 2..3   how many values
//     byte 4      m: changes to a good stream, then m times u16 place, u8 value; the rest are values
//
// Arrays are exactly as long as Python makes them, so that the address sanitizer sees every byte beyond.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "../worker/kernels/cpp/arguments.hpp"

extern "C" {
int modelpress_use(int wanted);
int64_t modelpress_alias_encode(const AliasEncode* a);
int modelpress_alias_decode(const AliasDecode* a);
int64_t modelpress_ranks(const uint8_t* bytes, int64_t count, const uint8_t* symbols, uint8_t* ranks, uint8_t* escapes, int64_t room);
void modelpress_pack(const uint8_t* codes, int64_t count, int num_bits, uint8_t bias, uint8_t* out, int threads);
void modelpress_unpack(const uint8_t* packed, int64_t count, int num_bits, uint8_t bias, uint8_t* out, int threads);
void modelpress_split(const void* values, int width, int64_t count, uint8_t* planes);
void modelpress_merge(const uint8_t* const* planes, int width, int64_t count, void* values);
void modelpress_dequantize(const Uniform* a, int threads);
int64_t modelpress_compact(const void* values, int width, int64_t count, uint8_t* mask, void* out, int64_t* negative);
int modelpress_spread(const uint8_t* mask, const void* values, int width, int64_t kept, int64_t count, void* out);
int64_t modelpress_turns_encode(const uint8_t* symbols, const uint8_t* contexts, int64_t count, const uint32_t* table, uint16_t* words, uint32_t* states);
int modelpress_turns_decode(const uint8_t* words, int64_t held, const uint32_t* states, const uint8_t* contexts, int64_t count, const uint32_t* table, uint8_t* symbols);
int modelpress_unfields(const uint8_t* ranks, const uint8_t* leads, const uint8_t* rests, const uint8_t* below, const uint8_t* escapes, int64_t held, int width, int64_t count, int low, int top, int depth, void* values);
int modelpress_contexts_decode(const uint8_t* body, int64_t size, int64_t count, int64_t columns, int zero, int depth, int64_t lag, const int16_t* stretch, const int32_t* squash, uint8_t* codes);
}

namespace {

void expect(bool holds, const char* what) {
    if (holds) return;
    std::fprintf(stderr, "wrong: %s\n", what);
    std::abort();
}

struct Input {
    const uint8_t* at;
    const uint8_t* end;
    uint8_t byte() { return at < end ? *at++ : 0; }
    uint32_t word() { return byte() | uint32_t(byte()) << 8; }
    template <class T> std::vector<T> values(size_t n) {  // repeated where there are too few
        std::vector<T> out(n);
        const size_t have = size_t(end - at);
        auto* bytes = reinterpret_cast<uint8_t*>(out.data());
        for (size_t i = 0; i < n * sizeof(T); i++) bytes[i] = have ? at[i % have] : uint8_t(i * 7);
        return out;
    }
};

struct Change { uint32_t place; uint8_t value; };

// worker/kernels/alias.py, Tables.of: frequencies of sum 4096.
struct Tables {
    uint32_t first[16], second[16];
    uint8_t last[16];
    uint16_t slots[4097] = {};
    explicit Tables(const uint32_t* f) {
        int left[16], keeps[16], other[16], taken[16] = {};
        std::vector<int> small, large;
        for (int r = 0; r < 16; r++) left[r] = int(f[r]), keeps[r] = 256, other[r] = r, (f[r] < 256 ? small : large).push_back(r);
        while (!small.empty() && !large.empty()) {
            const int s = small.back(), m = large.back();
            small.pop_back();
            keeps[s] = left[s], other[s] = m, left[m] -= 256 - left[s];
            if (left[m] < 256) large.pop_back(), small.push_back(m);
        }
        for (int b = 0; b < 16; b++) {
            const int at = b * 256, kept = keeps[b], o = other[b];
            first[b] = f[b] | uint32_t(b) << 12 | uint32_t(taken[b] - at + 4096) << 16, taken[b] += kept;
            second[b] = f[o] | uint32_t(o) << 12 | uint32_t(taken[o] - at - kept + 4096) << 16, taken[o] += 256 - kept;
            if (!kept) first[b] = second[b];
            last[b] = uint8_t((kept ? kept : 256) - 1);
        }
        uint32_t starts[16], sum = 0;
        for (int r = 0; r < 16; r++) starts[r] = sum, sum += f[r];
        for (uint32_t slot = 0; slot < 4096; slot++) {
            const uint32_t b = slot / 256, e = slot % 256 > last[b] ? second[b] : first[b];
            slots[starts[e >> 12 & 15] + slot + (e >> 16) - 4096] = uint16_t(slot);
        }
    }
};

void alias(Input in, size_t count, const std::vector<Change>& changes) {
    const auto plane = in.values<uint8_t>(count);
    uint32_t each[256] = {}, f[16] = {};
    for (const uint8_t b : plane) each[b]++;
    uint8_t order[256], symbols[16] = {};
    for (int i = 0; i < 256; i++) order[i] = uint8_t(i);
    std::stable_sort(order, order + 256, [&](uint8_t a, uint8_t b) { return each[a] > each[b]; });
    uint32_t common = 0, sum = 0;
    for (int r = 0; r < 15; r++) symbols[r] = order[r], common += each[order[r]], f[r] = each[order[r]] ? std::clamp<uint32_t>(uint32_t(uint64_t(each[order[r]]) * 4096 / count), 1, 4079) : 0;
    f[15] = common < count ? 1 : 0;
    if (each[order[0]] == count) f[0] = 4095, f[1] = 1;
    for (const uint32_t n : f) sum += n;
    while (sum != 4096) {  // as _normalized: what is left goes to, or comes from, the largest
        uint32_t* most = std::max_element(f, f + 16);
        const uint32_t step = sum < 4096 ? std::min(4096 - sum, 4095 - *most) : 0, less = sum > 4096 ? std::min(sum - 4096, *most / 2) : 0;
        if (!step && !less) { *std::min_element(f, f + 16) += 1, sum++; continue; }
        *most += step, *most -= less, sum += step, sum -= less;
    }
    std::vector<uint8_t> ranks(count), escapes(count - common);
    const int64_t others = modelpress_ranks(plane.data(), int64_t(count), symbols, ranks.data(), escapes.data(), int64_t(escapes.size()));
    expect(others == int64_t(escapes.size()), "escapes are not counted");
    Tables good(f);
    uint32_t both[16], start = 0;
    for (int r = 0; r < 16; r++) both[r] = f[r] | start << 16, start += f[r];
    std::vector<uint16_t> words(count);
    std::vector<uint32_t> states(64);
    const AliasEncode e{ranks.data(), both, good.slots, words.data(), states.data(), int64_t(count)};
    const size_t used = size_t(modelpress_alias_encode(&e));
    // the stream as it is stored: symbols, frequencies, states, words, escapes; changed, then read as Python reads it
    std::vector<uint8_t> stream(16 + 32 + 256 + 2 * used + escapes.size());
    uint16_t narrow[16];
    for (int r = 0; r < 16; r++) narrow[r] = uint16_t(f[r]);
    std::memcpy(&stream[0], symbols, 16), std::memcpy(&stream[16], narrow, 32), std::memcpy(&stream[48], states.data(), 256);
    if (used) std::memcpy(&stream[304], words.data() + count - used, 2 * used);
    if (!escapes.empty()) std::memcpy(&stream[304 + 2 * used], escapes.data(), escapes.size());
    size_t length = stream.size();
    for (const Change& c : changes) {
        if (c.place == 0xffff) length = 304 + (length - 304) * c.value / 256;  // cut off
        else stream[c.place % stream.size()] = c.value;
    }
    stream.resize(length);
    stream.shrink_to_fit();
    std::memcpy(narrow, &stream[16], 32);
    uint32_t total = 0;
    for (int r = 0; r < 16; r++) total += f[r] = narrow[r];
    if (total != 4096 || *std::max_element(f, f + 16) == 4096 || stream[15]) return;  // refused by Python
    const Tables tables(f);
    const size_t bytes = length - 304, told = std::min(2 * used, bytes / 2 * 2);
    std::vector<uint8_t> coded(stream.begin() + 304, stream.begin() + 304 + long(told)), rest(stream.begin() + 304 + long(told), stream.end()), out(count);
    const AliasDecode d{stream.data(), tables.first, tables.second, tables.last, &stream[48], coded.data(), rest.data(), out.data(), int64_t(count), int64_t(told / 2), int64_t(rest.size())};
    const int wrong = modelpress_alias_decode(&d);
    expect(0 <= wrong && wrong <= 3, "an unknown answer of alias_decode");
    if (changes.empty()) expect(!wrong && out == plane, "alias does not come back");
}

void unpack(Input in, size_t count, int bits) {
    const auto packed = in.values<uint8_t>((count * size_t(bits) + 7) / 8);
    std::vector<uint8_t> codes(count), again(packed.size());
    modelpress_unpack(packed.data(), int64_t(count), bits, 0, codes.data(), 1);
    for (const uint8_t c : codes) expect(c < 1 << bits, "a code has too many bits");
    modelpress_pack(codes.data(), int64_t(count), bits, 0, again.data(), 1);
    const size_t whole = count * size_t(bits) / 8;
    expect(std::equal(packed.begin(), packed.begin() + long(whole), again.begin()), "packed codes do not come back");
}

template <class Word> void merge(Input in, size_t count) {
    const auto planes = in.values<uint8_t>(sizeof(Word) * count);
    const uint8_t* each[4] = {};
    for (size_t p = 0; p < sizeof(Word); p++) each[p] = planes.data() + p * count;
    std::vector<Word> values(count);
    std::vector<uint8_t> again(planes.size());
    modelpress_merge(each, int(sizeof(Word)), int64_t(count), values.data());
    modelpress_split(values.data(), int(sizeof(Word)), int64_t(count), again.data());
    expect(again == planes, "planes do not come back");
}

template <class Word> void spread(Input in, size_t count, size_t kept) {
    const auto mask = in.values<uint8_t>((count + 7) / 8);
    const auto values = in.values<Word>(kept);
    std::vector<Word> out(count), again(count);
    if (!modelpress_spread(mask.data(), values.data(), int(sizeof(Word)), int64_t(kept), int64_t(count), out.data())) return;
    std::vector<uint8_t> found(mask.size());
    int64_t negative = 0;
    if (modelpress_compact(out.data(), int(sizeof(Word)), int64_t(count), found.data(), again.data(), &negative) != int64_t(kept)) return;  // zeros among what was kept
    expect(found == mask && std::equal(values.begin(), values.end(), again.begin()) && !negative, "a mask does not come back");
}

void contexts(Input in, size_t count, uint32_t shape) {
    static std::vector<int16_t> stretch;
    static std::vector<int32_t> squash;
    if (stretch.empty()) {  // as mixing.py has them, but for the last bits
        for (int i = 0; i < 4096; i++) stretch.push_back(int16_t(std::clamp(256 * std::log((2 * i + 1) / double(8191 - 2 * i)), -2047.0, 2047.0)));
        for (int i = 0; i < 4096; i++) squash.push_back(int32_t(std::lround(65536 / (1 + std::exp(-(i < 2048 ? i : i - 4096) / 256.0)))));
    }
    const auto body = in.values<uint8_t>(shape % 61);
    std::vector<uint8_t> codes(count);
    const int wrong = modelpress_contexts_decode(body.data(), int64_t(body.size()), int64_t(count), 1 + int64_t(shape % 97), int(shape >> 3 & 255), int(shape % 9), 1 + int64_t(shape % 700), stretch.data(), squash.data(), codes.data());
    expect(wrong == 0 || wrong == 2, "an unknown answer of contexts_decode");
}

// A stream of symbols in contexts with even frequencies but for one context that has none, changed; and what comes of it put together as floats.
void turns(Input in, size_t count, uint32_t shape, const std::vector<Change>& changes) {
    uint32_t table[256];
    for (uint32_t p = 0; p < 256; p++) table[p] = p >> 4 == 15 ? 0 : 256 | (p & 15) << 24;
    auto symbols = in.values<uint8_t>(count), contexts = symbols;
    for (size_t i = 0; i < count; i++) contexts[i] = symbols[i] >> 4 == 15 ? 14 : symbols[i] >> 4, symbols[i] &= 15;
    std::vector<uint16_t> words(count);
    std::vector<uint32_t> states(32);
    const size_t used = size_t(modelpress_turns_encode(symbols.data(), contexts.data(), int64_t(count), table, words.data(), states.data()));
    std::vector<uint8_t> stream(128 + 2 * used), found(count);
    std::memcpy(stream.data(), states.data(), 128);
    if (used) std::memcpy(&stream[128], words.data() + count - used, 2 * used);
    size_t length = stream.size();
    for (const Change& c : changes) {
        if (c.place == 0xffff) length = 128 + (length - 128) * c.value / 256 / 2 * 2;  // cut off
        else if (c.place % 16 == 15) contexts[c.place % count] = c.value & 15;
        else stream[c.place % stream.size()] = c.value;
    }
    std::memcpy(states.data(), stream.data(), 128);
    const std::vector<uint8_t> coded(stream.begin() + 128, stream.begin() + long(length));
    const int wrong = modelpress_turns_decode(coded.data(), int64_t(coded.size() / 2), states.data(), contexts.data(), int64_t(count), table, found.data());
    expect(0 <= wrong && wrong <= 3, "an unknown answer of turns_decode");
    if (changes.empty()) expect(!wrong && found == symbols, "turns do not come back");
    for (const uint8_t s : found) expect(s < 16, "a symbol is too large");
    const int width = shape & 1 ? 4 : 2, low = width == 2 && shape & 2 ? 10 : 7, depth = int(shape >> 2) % 5;
    const auto below = in.values<uint8_t>(size_t(width - 2) * count), escapes = in.values<uint8_t>(shape >> 5 & 15);
    std::vector<uint8_t> out(size_t(width) * count);
    modelpress_unfields(found.data(), symbols.data(), contexts.data(), below.data(), escapes.data(), int64_t(escapes.size()), width, int64_t(count), low, int(shape >> 9 & 255), depth, out.data());
}

void dequantize(Input in, size_t count, uint32_t shape) {
    const int64_t columns = 1 + int64_t(shape % 97), rows = std::max<int64_t>(1, int64_t(count) / columns), group = 1 + int64_t(shape / 97) % columns;
    const int64_t groups = (columns + group - 1) / group;
    const int32_t dtype = int32_t(shape % 3), floating = int32_t(shape >> 3 & 1), zeros = int32_t(shape >> 4 & 1);
    const auto codes = in.values<int8_t>(size_t(rows * columns)), zero = in.values<int8_t>(size_t(rows * groups));
    const auto scales = in.values<float>(size_t(rows * groups));
    std::vector<uint8_t> out(size_t(rows * columns) * (dtype ? 2 : 4));
    const Uniform u{codes.data(), scales.data(), zeros && !floating ? zero.data() : nullptr, out.data(), rows, columns, group, 1, dtype, int32_t(shape >> 5 & 1), floating};
    modelpress_dequantize(&u, 1);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    Input in{data, data + size};
    const uint8_t which = in.byte(), level = in.byte();
    const uint32_t told = in.word();
    const size_t count = 1 + told % (told >> 12 == 15 ? 6000 : 600);
    modelpress_use(level % 3);
    switch (which % 9) {
        case 0: unpack(in, count, 1 + level / 3 % 8); break;
        case 1: merge<uint16_t>(in, count); break;
        case 2: merge<uint32_t>(in, count); break;
        case 3: dequantize(in, count, in.word()); break;
        case 4: (level & 4) ? spread<uint32_t>(in, count, in.word() % (count + 1)) : spread<uint16_t>(in, count, in.word() % (count + 1)); break;
        case 5: contexts(in, count, in.word()); break;
        default: {
            const uint32_t shape = which % 9 == 6 ? in.word() : 0;
            std::vector<Change> changes(in.byte() % 24);
            for (Change& c : changes) c.place = in.word(), c.value = in.byte();
            which % 9 == 6 ? turns(in, count, shape, changes) : alias(in, count, changes);
        }
    }
    return 0;
}
