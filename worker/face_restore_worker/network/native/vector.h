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

INLINE int smaller(int a, int b) { return a < b ? a : b; }

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

/* 32 bf16 values: the even ones and the odd ones, in half of the instructions of two `load`. */
INLINE void load_even_odd(const void *at, __m512 *even, __m512 *odd) {
    __m512i both = _mm512_loadu_si512(at);
    *even = _mm512_castsi512_ps(_mm512_slli_epi32(both, 16));
    *odd = _mm512_castsi512_ps(_mm512_and_si512(both, _mm512_set1_epi32((int)0xffff0000)));
}

/* The same of 32 fp32 values. */
INLINE void load_even_odd_fp32(const float *at, __m512 *even, __m512 *odd) {
    const __m512i lane =
        _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    __m512 low = _mm512_loadu_ps(at), high = _mm512_loadu_ps(at + LANES);
    *even = _mm512_permutex2var_ps(low, lane, high);
    *odd = _mm512_permutex2var_ps(low, _mm512_add_epi32(lane, _mm512_set1_epi32(1)), high);
}

INLINE void store(void *at, __m512 x, int bf16) {
    if (bf16)
        _mm256_storeu_si256(at, narrow(x));
    else
        _mm512_storeu_ps(at, x);
}

INLINE __m512 leaky(__m512 x) { return _mm512_max_ps(x, _mm512_mul_ps(x, _mm512_set1_ps(0.2f))); }

/* What matrices hold: fp32, or pairs along the depth of bf16 or int16, each taken for one float. */
enum kind { FP32, BF16, INT16 };

/* sum (rows x vectors * 16) = a (rows x depth) b (depth x vectors * 16), of int16 in int32.
 *
 * Four rows have one pointer, so that no address needs a register that is not there. */
INLINE void sums_of(const float *a, ptrdiff_t a_row, const float *b, __m512 sum[16][2], int depth,
                    const int rows, const int vectors, const enum kind kind) {
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
            for (int v = 0; v < vectors; v++) {
                if (kind == FP32)
                    sum[r][v] = _mm512_fmadd_ps(x, line[v], sum[r][v]);
                else if (kind == BF16)
                    sum[r][v] = _mm512_dpbf16_ps(sum[r][v], (__m512bh)x, (__m512bh)line[v]);
                else
                    sum[r][v] = (__m512)_mm512_dpwssd_epi32((__m512i)sum[r][v], (__m512i)x,
                                                            (__m512i)line[v]);
            }
            if (r % 4 == 3)
                four[r / 4]++;
        }
    }
}

/* c (rows x vectors * 16) = a (rows x depth) b (depth x vectors * 16). */
INLINE void small_product(const float *a, ptrdiff_t a_row, const float *b, float *c,
                          ptrdiff_t c_row, int depth, const int rows, const int vectors,
                          const enum kind kind) {
    __m512 sum[16][2];
    sums_of(a, a_row, b, sum, depth, rows, vectors, kind);
#pragma GCC unroll 16
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 2
        for (int v = 0; v < vectors; v++)
            _mm512_storeu_ps(c + r * c_row + v * LANES, sum[r][v]);
}

/* c = a b for whole matrices: `b` lies in panels of 32 columns (or one of 16), (depth, columns)
 * each; `rows` is a multiple of 8. */
INLINE void product(const float *a, ptrdiff_t a_row, const float *b, float *c, ptrdiff_t c_row,
                    int rows, int depth, int columns, const enum kind kind) {
    if (columns == LANES) {
        int r = 0;
        for (; r + 16 <= rows; r += 16)
            small_product(a + r * a_row, a_row, b, c + r * c_row, c_row, depth, 16, 1, kind);
        for (; r < rows; r += 8)
            small_product(a + r * a_row, a_row, b, c + r * c_row, c_row, depth, 8, 1, kind);
        return;
    }
    for (int n = 0; n < columns; n += 2 * LANES, b += (ptrdiff_t)2 * LANES * depth)
        for (int r = 0; r < rows; r += 8)
            small_product(a + r * a_row, a_row, b, c + r * c_row + n, c_row, depth, 8, 2, kind);
}

/* Sums of products of int16 pairs, brought to fp32: c = factor[rows] * unit * sums, or c += that
 * where `more`. A factor is for `each` rows. */
INLINE void small_int_product(const float *a, ptrdiff_t a_row, const float *b, float *c,
                              ptrdiff_t c_row, int depth, const float *factor,
                              ptrdiff_t factor_step, const float *unit, const int each,
                              const int rows, const int vectors, const int more) {
    __m512 sum[16][2];
    sums_of(a, a_row, b, sum, depth, rows, vectors, INT16);
    __m512 scale[2];
#pragma GCC unroll 16
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 2
        for (int v = 0; v < vectors; v++) {
            float *at = c + r * c_row + v * LANES;
            if (r % each == 0)
                scale[v] = _mm512_mul_ps(_mm512_set1_ps(factor[r / each * factor_step]),
                                         _mm512_loadu_ps(unit + v * LANES));
            __m512 x = _mm512_cvtepi32_ps((__m512i)sum[r][v]);
            _mm512_storeu_ps(at, more ? _mm512_fmadd_ps(x, scale[v], _mm512_loadu_ps(at))
                                      : _mm512_mul_ps(x, scale[v]));
        }
}

/* c = a b for whole matrices of int16 pairs. a has `depths` runs of `depth` pairs, each with
 * factors of its own, `run_step` apart, and those of every `each` rows `factor_step` apart; `unit`
 * is for the columns of b, which lies in panels of 32 columns (or one of 16). `rows` is a multiple
 * of 16. */
INLINE void int_product(const float *a, ptrdiff_t a_row, const float *b, float *c, ptrdiff_t c_row,
                        int rows, int depth, int depths, int columns, const float *factor,
                        ptrdiff_t factor_step, ptrdiff_t run_step, const float *unit,
                        const int each) {
    const int wide = columns < 2 * LANES ? LANES : 2 * LANES, high = wide == LANES ? 16 : 8;
    for (int n = 0; n < columns; n += wide, b += (ptrdiff_t)depths * depth * wide)
        for (int r = 0; r < rows; r += high)
            for (int k = 0; k < depths; k++) {
                const float *here = a + r * a_row + (ptrdiff_t)k * depth;
                const float *weight = b + (ptrdiff_t)k * depth * wide;
                const float *f = factor + r / each * factor_step + k * run_step;
                float *to = c + r * c_row + n;
                if (wide == LANES && k)
                    small_int_product(here, a_row, weight, to, c_row, depth, f, factor_step,
                                      unit + n, each, 16, 1, 1);
                else if (wide == LANES)
                    small_int_product(here, a_row, weight, to, c_row, depth, f, factor_step,
                                      unit + n, each, 16, 1, 0);
                else if (k)
                    small_int_product(here, a_row, weight, to, c_row, depth, f, factor_step,
                                      unit + n, each, 8, 2, 1);
                else
                    small_int_product(here, a_row, weight, to, c_row, depth, f, factor_step,
                                      unit + n, each, 8, 2, 0);
            }
}

#define INT16_LIMIT 16383.0f /* largest transformed value; the weights are bounded by it too */

/* The larger absolute values, or NaN: as integers their bits are in the same order. */
INLINE __m512 larger(__m512 most, __m512 x) {
    __m512i size = _mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32(0x7fffffff));
    return _mm512_castsi512_ps(_mm512_max_epu32(_mm512_castps_si512(most), size));
}

/* What brings values to int16, that are at most `growth` times what `larger` found; *factor takes
 * it back, and is not finite where they are not. */
INLINE __m512 int_scale(__m512 most, float growth, float *factor) {
    __m512i bits = _mm512_set1_epi32((int)_mm512_reduce_max_epu32(_mm512_castps_si512(most)));
    float bound = growth * _mm512_cvtss_f32(_mm512_castsi512_ps(bits));
    *factor = bound / INT16_LIMIT;
    return _mm512_set1_ps(bound > 0 ? INT16_LIMIT / bound : 0);
}

/* 32 values as int16: by four of a and of b in turn. */
INLINE __m512i pack(__m512 a, __m512 b) {
    return _mm512_packs_epi32(_mm512_cvtps_epi32(a), _mm512_cvtps_epi32(b));
}

#endif
