// Rounding one input after another, the error of each made up for by the inputs after it: the inner loop of worker/kernels/compensation.py (`solve`), which is the reference. Rows know nothing of
// each other, so that as many as a register has lanes go together.
#pragma once

#include "arguments.hpp"
#include "vector.hpp"

namespace {

// `room`: a.width registers.
inline void compensate_rows(const Compensate& a, int64_t first, int64_t last, float* room) {
    for (int64_t row = first; row < last; row += WIDTH) {
        const int64_t n = last - row < WIDTH ? last - row : WIDTH;
        F scale = all(1.0f), zero{};
        for (int64_t r = 0; r < n; r++) {
            scale[r] = a.scales[row + r];
            if (a.zeros) zero[r] = a.zeros[row + r];
        }
        const F low = all(a.low) - zero, high = all(a.high) - zero;
        for (int64_t k = a.first; k < a.width; k++) {
            F v{};
            for (int64_t r = 0; r < n; r++) v[r] = a.block[(row + r) * a.stride + k];
            store(room + k * WIDTH, v);
        }
        for (int64_t j = a.first; j < a.last; j++) {
            const float* const upper = a.upper + j * a.upper_stride;
            const F x = load<F>(room + j * WIDTH);
            F left = x;
            if (a.kept)
                for (int64_t r = 0; r < n; r++) left[r] *= a.kept[(row + r) * a.stride + j];
            left /= scale;
            left = left == left ? left : F{};
            const F whole = round_even(least(most(left, low), high)), q = whole * scale, error = (x - q) / all(upper[j]), code = whole + zero;
            store(room + j * WIDTH, q);
            for (int64_t k = j + 1; k < a.width; k++) store(room + k * WIDTH, load<F>(room + k * WIDTH) - error * all(upper[k]));
            for (int64_t r = 0; r < n; r++) {
                a.errors[(row + r) * a.width + j] = error[r];
                a.codes[(row + r) * a.stride + j] = code[r];
            }
        }
        for (int64_t k = a.first; k < a.width; k++) {
            const F v = load<F>(room + k * WIDTH);
            for (int64_t r = 0; r < n; r++) a.block[(row + r) * a.stride + k] = v[r];
        }
    }
}

}  // namespace
