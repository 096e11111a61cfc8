/* What this library is, and what the processor has; compiled without AVX-512. */
#include "kernels.h"

#ifndef SOURCE_VERSION
#define SOURCE_VERSION 0
#endif

uint64_t version(void) { return SOURCE_VERSION; }

int32_t features(void) {
    __builtin_cpu_init(); /* what the operating system does not save, it does not report */
    int fp32 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
               __builtin_cpu_supports("fma");
    return fp32 ? 1 : 0;
}
