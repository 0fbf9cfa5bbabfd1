// The kernels for every processor of the architecture that this is compiled for.
#define ISA 0
#include "kernels.hpp"

extern const Kernels baseline_kernels = KERNELS;
