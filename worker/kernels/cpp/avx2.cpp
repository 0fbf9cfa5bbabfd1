#if defined(__x86_64__)
#pragma GCC target("avx2,bmi,bmi2,popcnt")
#define ISA 1
#include "kernels.hpp"

extern const Kernels avx2_kernels = KERNELS;
#endif
