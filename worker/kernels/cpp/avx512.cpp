#if defined(__x86_64__)
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,bmi,bmi2,popcnt")
#define ISA 2
#include "kernels.hpp"

extern const Kernels avx512_kernels = KERNELS;
#endif
