/* The FIR blur, a 3x3 convolution of stride 2 behind it, bias and leaky ReLU.
 *
 * Even rows of the blurred plane meet two taps of the convolution, odd ones one, columns likewise.
 * Two taps are filtered by Winograd's F(4, 2), one tap at its four finite points, so that the four
 * phases add up before they are transformed back: 81 products instead of 144 for 4x4 results.
 */
#include "filter2.h"
#include "kernels.h"
#include "vector.h"

#define TILE 4
#define GROUP 4             /* tiles beside each other that are blurred together */
#define SIDE (2 * TILE + 1) /* rows of the blurred plane that a tile takes */
#define WIDE (2 * TILE * GROUP + 1)
#define PLANES 25
#define ROW_SUM                                                                                    \
    3.5234375f /* (1 + A) (1 + B2): of B^T's rows, the largest sum of absolute values              \
                */

/* Blurred rows of `tiles` tiles from tile (row, column) on, sixteen channels, 64 times too large.
 */
INLINE void blur(const struct downsample *d, int row, int column, int tiles, int channel,
                 __m512 blurred[SIDE][WIDE], const int border, const int bf16) {
    const __m512 three = _mm512_set1_ps(3.0f);
    __m512 strength = bf16 ? _mm512_loadu_ps(d->strength + channel) : three;
    __m512 inner = bf16 ? _mm512_mul_ps(three, strength) : three;
    int y = 2 * TILE * row - 2 - d->first, x = 2 * TILE * column - 2, end = 2 * TILE * tiles + 4;
    __m512 sums[3][SIDE];
    for (int j = 0; j < end; j++, x++) {
        __m512 source[SIDE + 3];
#pragma GCC unroll 12
        for (int k = 0; k < SIDE + 3; k++) {
            ptrdiff_t at = ((ptrdiff_t)(y + k) * d->columns + x) * d->pixel + channel;
            source[k] = _mm512_setzero_ps();
            if (!border || (y + k >= 0 && y + k < d->rows && x >= 0 && x < d->columns))
                source[k] = load(element(d->source, at, bf16), bf16);
        }
#pragma GCC unroll 9
        for (int k = 0; k < SIDE; k++) {
            __m512 outer = _mm512_add_ps(source[k], source[k + 3]);
            if (bf16)
                outer = _mm512_mul_ps(strength, outer);
            __m512 sum = _mm512_fmadd_ps(inner, _mm512_add_ps(source[k + 1], source[k + 2]), outer);
            if (j >= 3)
                blurred[k][j - 3] = _mm512_fmadd_ps(
                    three, _mm512_add_ps(sums[(j + 1) % 3][k], sums[(j + 2) % 3][k]),
                    _mm512_add_ps(sums[j % 3][k], sum));
            sums[j % 3][k] = sum;
        }
    }
}

/* Transform a tile's columns, sixteen channels: even and odd blurred rows to lines of their own. */
INLINE void columns(__m512 blurred[SIDE][WIDE], int column, __m512 even[5][SIDE],
                    __m512 odd[4][SIDE]) {
    for (int j = 0; j < SIDE; j++) {
        __m512 d[5], t[5];
#pragma GCC unroll 5
        for (int k = 0; k < 5; k++)
            d[k] = blurred[2 * k][column + j];
        into(d, t);
#pragma GCC unroll 5
        for (int k = 0; k < 5; k++)
            even[k][j] = t[k];
#pragma GCC unroll 4
        for (int k = 0; k < 4; k++)
            d[k] = blurred[2 * k + 1][column + j];
        into_finite(d, t);
#pragma GCC unroll 4
        for (int k = 0; k < 4; k++)
            odd[k][j] = t[k];
    }
}

/* Transform a line: its even columns to t, its odd ones to f. */
INLINE void across(const __m512 line[SIDE], __m512 t[5], __m512 f[4]) {
    __m512 d[5];
#pragma GCC unroll 5
    for (int j = 0; j < 5; j++)
        d[j] = line[2 * j];
    into(d, t);
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++)
        d[j] = line[2 * j + 1];
    into_finite(d, f);
}

/* Transform a tile, sixteen channels: points to `v` with the phases' channels behind each other. */
INLINE void transform(__m512 blurred[SIDE][WIDE], int column, float *v, ptrdiff_t plane,
                      ptrdiff_t phase) {
    __m512 even[5][SIDE], odd[4][SIDE];
    columns(blurred, column, even, odd);
    for (int k = 0; k < SIDE; k++) {
        __m512 t[5], f[4];
        float *here = v + (k < 5 ? k : k - 5) * 5 * plane;
        across(k < 5 ? even[k] : odd[k - 5], t, f);
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++) {
            _mm512_storeu_ps(here + j * plane + (k < 5 ? 0 : 2) * phase, t[j]);
            _mm512_storeu_ps(here + j * plane + (k < 5 ? 1 : 3) * phase, f[j]);
        }
        _mm512_storeu_ps(here + 4 * plane + (k < 5 ? 0 : 1) * phase, t[4]);
    }
}

/* Transform `tiles` tiles, the sixteen channels of a group, to int16: a row of points is scaled by
 * what it is at most. In a point's plane a group has its phases' channels, those of two phases by
 * four in turn, behind the group before. */
INLINE void transform_int16(__m512 blurred[SIDE][WIDE], int tiles, int group, int16_t *v,
                            ptrdiff_t plane, ptrdiff_t tile, float factor[5]) {
    __m512 even[GROUP][5][SIDE], odd[GROUP][4][SIDE], scale[5];
    for (int t = 0; t < tiles; t++)
        columns(blurred, 2 * TILE * t, even[t], odd[t]);
    for (int k = 0; k < 5; k++) {
        __m512 most = _mm512_setzero_ps();
        for (int t = 0; t < tiles; t++)
            for (int j = 0; j < SIDE; j++) {
                most = larger(most, even[t][k][j]);
                if (k < 4)
                    most = larger(most, odd[t][k][j]);
            }
        scale[k] = int_scale(most, ROW_SUM, factor + k);
    }
    for (int t = 0; t < tiles; t++)
        for (int k = 0; k < 5; k++) {
            int16_t *here = v + t * tile + 5 * k * plane;
            int phases = k < 4 ? 2 : 1; /* of rows */
            __m512 line[SIDE], a[2][5], b[2][4];
            for (int r = 0; r < phases; r++) {
#pragma GCC unroll 9
                for (int j = 0; j < SIDE; j++)
                    line[j] = _mm512_mul_ps(r ? odd[t][k][j] : even[t][k][j], scale[k]);
                across(line, a[r], b[r]);
#pragma GCC unroll 4
                for (int j = 0; j < 4; j++)
                    _mm512_storeu_si512(here + j * plane + 2 * LANES * (phases * group + r),
                                        pack(a[r][j], b[r][j]));
            }
            here += 4 * plane + LANES * phases * group;
            if (k < 4)
                _mm512_storeu_si512(here, pack(a[0][4], a[1][4]));
            else
                _mm256_storeu_si256((void *)here,
                                    _mm512_cvtsepi32_epi16(_mm512_cvtps_epi32(a[0][4])));
        }
}

INLINE void input(const struct downsample *d, int row, int column, int tiles, float *v,
                  ptrdiff_t plane, float *factors, const int bf16) {
    int top = 2 * TILE * row - 2 - d->first, left = 2 * TILE * column - 2;
    int inside = top >= 0 && top + SIDE + 3 <= d->rows && left >= 0 &&
                 left + 2 * TILE * tiles + 4 <= d->columns;
    for (int c = 0; c < d->inputs; c += LANES) {
        __m512 blurred[SIDE][WIDE];
        if (inside)
            blur(d, row, column, tiles, c, blurred, 0, bf16);
        else
            blur(d, row, column, tiles, c, blurred, 1, bf16);
        if (bf16)
            transform_int16(blurred, tiles, c / LANES, (int16_t *)v, plane, 4 * d->inputs,
                            factors + c / LANES * 5);
        else
            for (int t = 0; t < tiles; t++)
                transform(blurred, 2 * TILE * t, v + (ptrdiff_t)t * 4 * d->inputs + c, plane,
                          d->inputs);
    }
}

INLINE void output(const struct downsample *d, int row, int column, const float *m, ptrdiff_t plane,
                   const int bf16) {
    for (int o = 0; o < d->outputs; o += LANES) {
        __m512 bias = _mm512_loadu_ps(d->bias + o), lines[4][5];
        for (int j = 0; j < 5; j++) {
            __m512 t[5], y[4];
#pragma GCC unroll 5
            for (int k = 0; k < 5; k++)
                t[k] = _mm512_loadu_ps(m + (5 * k + j) * plane + o);
            out_of(t, y);
#pragma GCC unroll 4
            for (int k = 0; k < 4; k++)
                lines[k][j] = y[k];
        }
        for (int k = 0; k < 4; k++) {
            __m512 y[4];
            out_of(lines[k], y);
            ptrdiff_t at = (ptrdiff_t)((row - d->from) * TILE + k) * (d->columns / 2);
#pragma GCC unroll 4
            for (int j = 0; j < 4; j++)
                store((void *)element(d->out, (at + column * TILE + j) * d->outputs + o, bf16),
                      leaky(_mm512_add_ps(y[j], bias)), bf16);
        }
    }
}

/* The matrix product of point p for `tiles` tiles; `weight` is moved on to the next point's. */
INLINE void point(const struct downsample *d, int p, const float *v, const float *factors, float *m,
                  int tiles, const char **weight, const int bf16) {
    int phases = (p / 5 < 4 ? 2 : 1) * (p % 5 < 4 ? 2 : 1), depth = d->inputs * phases;
    int groups = d->inputs / LANES;
    if (bf16)
        int_product(v, 2 * d->inputs, (const float *)*weight, m, d->outputs, tiles,
                    LANES / 2 * phases, groups, d->outputs, factors + p / 5, 5 * groups, 5,
                    d->unit + p * d->outputs, GROUP);
    else
        product(v, 4 * d->inputs, (const float *)*weight, m, d->outputs, tiles, depth, d->outputs,
                FP32);
    *weight += (ptrdiff_t)depth * d->outputs * (bf16 ? 2 : 4);
}

INLINE void shrink(const struct downsample *d, const int bf16) {
    int across = d->columns / 2 / TILE, block = d->block;
    /* A line of tiles takes whole groups of slots, as the factors are a group's. */
    int columns = smaller((across + GROUP - 1) / GROUP * GROUP, block), rows = block / columns;
    ptrdiff_t v_plane = (ptrdiff_t)block * 4 * d->inputs + (bf16 ? 2 * LANES : LANES);
    ptrdiff_t m_plane = (ptrdiff_t)block * d->outputs + LANES;
    float *v = d->scratch, *m = v + PLANES * v_plane / (bf16 ? 2 : 1);
    float *factors = m + PLANES * m_plane;
    for (int y = d->from; y < d->to; y += rows)
        for (int x = 0; x < across; x += columns) {
            int high = smaller(rows, d->to - y), wide = smaller(columns, across - x);
            int slots = (wide + GROUP - 1) / GROUP * GROUP, tiles = (high * slots + 15) / 16 * 16;
            for (int r = 0; r < high; r++)
                for (int t = 0; t < wide; t += GROUP) {
                    ptrdiff_t tile = r * slots + t, at = tile * 4 * d->inputs;
                    input(d, y + r, x + t, smaller(GROUP, wide - t),
                          bf16 ? (float *)((int16_t *)v + at) : v + at, v_plane,
                          factors + tile / GROUP * 5 * (d->inputs / LANES), bf16);
                }
            const char *weight = d->weight;
            for (int p = 0; p < PLANES; p++)
                point(d, p, bf16 ? (float *)((int16_t *)v + p * v_plane) : v + p * v_plane, factors,
                      m + p * m_plane, tiles, &weight, bf16);
            for (int r = 0; r < high; r++)
                for (int t = 0; t < wide; t++)
                    output(d, y + r, x + t, m + (ptrdiff_t)(r * slots + t) * d->outputs, m_plane,
                           bf16);
        }
}

void downsample_fp32(const struct downsample *d) { shrink(d, 0); }

void downsample_bf16(const struct downsample *d) { shrink(d, 1); }
