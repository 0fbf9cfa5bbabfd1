// Floats of which many are zero: those that are not, and where they are (worker/kernels/masks.py). Both zeros are zeros.
#pragma once

#include <cstdint>
#if ISA >= 1
#include <immintrin.h>
#endif

namespace {

#if ISA >= 1
// For each mask of eight words of 16 bits the bytes that bring those of the mask together, and back; 0x80 gives a zero.
struct Shuffles {
    alignas(16) uint8_t together[256][16], apart[256][16];
    constexpr Shuffles() : together(), apart() {
        for (int mask = 0; mask < 256; mask++) {
            int next = 0;
            for (int lane = 0; lane < 16; lane++) together[mask][lane] = apart[mask][lane] = 0x80;
            for (int lane = 0; lane < 8; lane++) {
                if (!(mask >> lane & 1)) continue;
                for (int byte = 0; byte < 2; byte++) {
                    together[mask][2 * next + byte] = uint8_t(2 * lane + byte);
                    apart[mask][2 * lane + byte] = uint8_t(2 * next + byte);
                }
                next++;
            }
        }
    }
};
constexpr Shuffles SHUFFLES;

inline __m128i eight_words(const void* p) { return _mm_loadu_si128(static_cast<const __m128i*>(p)); }
inline __m128i shuffled(__m128i v, const uint8_t* by) { return _mm_shuffle_epi8(v, _mm_load_si128(reinterpret_cast<const __m128i*>(by))); }
#endif

// Bit i % 8 of mask[i / 8] says whether value i is kept; `out` has room for n. Returns how many are; `negative`: how many zeros have a sign.
template <class Word>
int64_t compact(const Word* values, int64_t n, uint8_t* mask, Word* out, int64_t& negative) {
    int64_t kept = 0, nothing = 0, i = 0;
#if ISA >= 1
    if constexpr (sizeof(Word) == 2)
        for (; i + 8 <= n; i += 8) {  // eight are written, at most as far as n
            const __m128i v = eight_words(values + i), none = _mm_setzero_si128();
            const __m128i zero = _mm_cmpeq_epi16(_mm_add_epi16(v, v), none), plain = _mm_cmpeq_epi16(v, none);
            const int both = _mm_movemask_epi8(_mm_packs_epi16(zero, plain)), keep = ~both & 255;
            _mm_storeu_si128(reinterpret_cast<__m128i*>(out + kept), shuffled(v, SHUFFLES.together[keep]));
            mask[i / 8] = uint8_t(keep);
            kept += __builtin_popcount(unsigned(keep)), nothing += __builtin_popcount(unsigned(both >> 8));
        }
#endif
    for (; i < n; i += 8) {
        uint32_t bits = 0;
        for (int j = 0; j < 8 && i + j < n; j++) {
            const Word v = values[i + j];
            const bool keep = Word(v << 1) != 0;
            out[kept] = v;  // overwritten by the next where this one is none
            kept += keep, nothing += v == 0, bits |= uint32_t(keep) << j;
        }
        mask[i / 8] = uint8_t(bits);
    }
    negative = n - kept - nothing;
    return kept;
}

// Back, with positive zeros. Returns whether the mask has `kept` ones, none of them behind the end; nothing is read behind the values.
template <class Word>
bool spread(const uint8_t* mask, const Word* values, int64_t kept, int64_t n, Word* out) {
    int64_t k = 0, i = 0;
#if ISA >= 1
    if constexpr (sizeof(Word) == 2)
        for (; i + 8 <= n && k + 8 <= kept; i += 8) {
            const unsigned keep = mask[i / 8];
            _mm_storeu_si128(reinterpret_cast<__m128i*>(out + i), shuffled(eight_words(values + k), SHUFFLES.apart[keep]));
            k += __builtin_popcount(keep);
        }
#endif
    for (; i + 8 <= n && k + 8 < kept; i += 8)  // eight ones more at most, and the one behind is looked at
        for (int j = 0; j < 8; j++) {
            const Word keep = mask[i / 8] >> j & 1;
            out[i + j] = Word(values[k] & Word(-keep));
            k += int64_t(keep);
        }
    for (; i < n; i++) {
        const bool keep = mask[i / 8] >> (i % 8) & 1;
        if (keep && k == kept) return false;
        out[i] = keep ? values[k++] : Word(0);
    }
    return k == kept && (n % 8 == 0 || mask[n / 8] >> n % 8 == 0);
}

}  // namespace
