/* Sixteen values at a time: loads and stores of fp32 and bf16 lines, leaky ReLU, matrix products.
 *
 * Compiled with AVX-512 switched on; only called where `features` (kernels.c) found it.
 */
#ifndef FACE_RESTORE_VECTOR_H
#define FACE_RESTORE_VECTOR_H

#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>

#define INLINE static inline __attribute__((always_inline))
#define LANES 16

/* Element `at` of a line of fp32 or bf16 values. */
INLINE const void *element(const void *line, ptrdiff_t at, int bf16) {
    return (const char *)line + at * (bf16 ? 2 : 4);
}

INLINE __m512 widen(__m256i half) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}

INLINE __m256i narrow(__m512 x) { return (__m256i)_mm512_cvtneps_pbh(x); }

INLINE __m512 load(const void *at, int bf16) {
    return bf16 ? widen(_mm256_loadu_si256(at)) : _mm512_loadu_ps(at);
}

INLINE void store(void *at, __m512 x, int bf16) {
    if (bf16)
        _mm256_storeu_si256(at, narrow(x));
    else
        _mm512_storeu_ps(at, x);
}

INLINE __m512 leaky(__m512 x) {
    return _mm512_max_ps(x, _mm512_mul_ps(x, _mm512_set1_ps(0.2f)));
}

/* c (rows x vectors * 16) = a (rows x depth) b (depth x vectors * 16), the sums in registers.
 *
 * `pairs`: what a and b hold are pairs of bf16 along the depth, each taken for one float.
 * Four rows have one pointer, so that no address needs a register that is not there. */
INLINE void small_product(const float *a, ptrdiff_t a_row, const float *b, float *c,
                          ptrdiff_t c_row, int depth, const int rows, const int vectors, const int pairs) {
    __m512 sum[16][2];
    const float *four[4];
    ptrdiff_t third = 3 * a_row;
#pragma GCC unroll 16
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 2
        for (int v = 0; v < vectors; v++)
            sum[r][v] = _mm512_setzero_ps();
#pragma GCC unroll 4
    for (int r = 0; r < rows / 4; r++)
        four[r] = a + 4 * r * a_row;
#pragma GCC unroll 2
    for (int k = 0; k < depth; k++, b += vectors * LANES) {
        __m512 line[2];
#pragma GCC unroll 2
        for (int v = 0; v < vectors; v++)
            line[v] = _mm512_loadu_ps(b + v * LANES);
#pragma GCC unroll 16
        for (int r = 0; r < rows; r++) {
            const float *at = four[r / 4];
            __m512 x = _mm512_set1_ps(r % 4 == 0   ? at[0]
                                      : r % 4 == 1 ? at[a_row]
                                      : r % 4 == 2 ? at[2 * a_row]
                                                   : at[third]);
#pragma GCC unroll 2
            for (int v = 0; v < vectors; v++)
                sum[r][v] = pairs ? _mm512_dpbf16_ps(sum[r][v], (__m512bh)x, (__m512bh)line[v])
                                  : _mm512_fmadd_ps(x, line[v], sum[r][v]);
            if (r % 4 == 3)
                four[r / 4]++;
        }
    }
#pragma GCC unroll 16
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 2
        for (int v = 0; v < vectors; v++)
            _mm512_storeu_ps(c + r * c_row + v * LANES, sum[r][v]);
}

/* c = a b for whole matrices: `b` lies in panels of 32 columns (or one of 16), (depth, columns)
 * each; `rows` is a multiple of 8. */
INLINE void product(const float *a, ptrdiff_t a_row, const float *b, float *c, ptrdiff_t c_row,
                    int rows, int depth, int columns, const int pairs) {
    if (columns == LANES) {
        int r = 0;
        for (; r + 16 <= rows; r += 16)
            small_product(a + r * a_row, a_row, b, c + r * c_row, c_row, depth, 16, 1, pairs);
        for (; r < rows; r += 8)
            small_product(a + r * a_row, a_row, b, c + r * c_row, c_row, depth, 8, 1, pairs);
        return;
    }
    for (int n = 0; n < columns; n += 2 * LANES, b += (ptrdiff_t)2 * LANES * depth)
        for (int r = 0; r < rows; r += 8)
            small_product(a + r * a_row, a_row, b, c + r * c_row + n, c_row, depth, 8, 2, pairs);
}

#endif
