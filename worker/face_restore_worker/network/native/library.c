/* What this library is, and what the processor has; compiled without AVX-512. */
#include <cpuid.h>

#include "kernels.h"

#ifndef SOURCE_VERSION
#define SOURCE_VERSION 0
#endif

uint64_t version(void) { return SOURCE_VERSION; }

int32_t features(void) {
    __builtin_cpu_init(); /* what the operating system does not save, it does not report */
    if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
        !__builtin_cpu_supports("avx512dq") || !__builtin_cpu_supports("avx512vl") ||
        !__builtin_cpu_supports("fma"))
        return 0;
    /* Where there are AMX's matrix instructions for bf16, oneDNN uses them and these kernels would
     * not: leaf 7, EDX bit 22; AVX512_BF16 is bit 5 of EAX in its first subleaf,
     * AVX512_VNNI bit 11 of ECX in its zeroth. */
    unsigned a = 0, b = 0, c = 0, d = 0, e = 0, f = 0;
    if (!__get_cpuid_count(7, 0, &e, &b, &c, &d) || !__get_cpuid_count(7, 1, &a, &b, &e, &f))
        return 1;
    return (a >> 5 & 1) && (c >> 11 & 1) && !(d >> 22 & 1) ? 3 : 1;
}
