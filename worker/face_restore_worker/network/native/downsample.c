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
#define GROUP 4                 /* tiles beside each other that are blurred together */
#define SIDE (2 * TILE + 1)     /* rows of the blurred plane that a tile takes */
#define WIDE (2 * TILE * GROUP + 1)
#define PLANES 25

/* Blurred rows of `tiles` tiles from tile (row, column) on, sixteen channels, 64 times too large. */
INLINE void blur(const struct downsample *d, int row, int column, int tiles, int channel,
                 __m512 blurred[SIDE][WIDE], const int border, const int bf16) {
    const __m512 three = _mm512_set1_ps(3.0f);
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
            __m512 sum = _mm512_fmadd_ps(three, _mm512_add_ps(source[k + 1], source[k + 2]),
                                         _mm512_add_ps(source[k], source[k + 3]));
            if (j >= 3)
                blurred[k][j - 3] =
                    _mm512_fmadd_ps(three, _mm512_add_ps(sums[(j + 1) % 3][k], sums[(j + 2) % 3][k]),
                                    _mm512_add_ps(sums[j % 3][k], sum));
            sums[j % 3][k] = sum;
        }
    }
}

/* Transform a tile, sixteen channels: points to `v` with the phases' channels behind each other. */
INLINE void transform(__m512 blurred[SIDE][WIDE], int column, float *v, ptrdiff_t plane,
                      ptrdiff_t phase) {
    __m512 even[5][SIDE], odd[4][SIDE];
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
    for (int k = 0; k < SIDE; k++) {
        const __m512 *line = k < 5 ? even[k] : odd[k - 5];
        __m512 d[5], t[5], f[4];
        float *here = v + (k < 5 ? k : k - 5) * 5 * plane;
#pragma GCC unroll 5
        for (int j = 0; j < 5; j++)
            d[j] = line[2 * j];
        into(d, t);
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++)
            d[j] = line[2 * j + 1];
        into_finite(d, f);
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++) {
            _mm512_storeu_ps(here + j * plane + (k < 5 ? 0 : 2) * phase, t[j]);
            _mm512_storeu_ps(here + j * plane + (k < 5 ? 1 : 3) * phase, f[j]);
        }
        _mm512_storeu_ps(here + 4 * plane + (k < 5 ? 0 : 1) * phase, t[4]);
    }
}

INLINE void input(const struct downsample *d, int row, int column, int tiles, float *v,
                  ptrdiff_t plane, const int bf16) {
    int top = 2 * TILE * row - 2 - d->first, left = 2 * TILE * column - 2;
    int inside = top >= 0 && top + SIDE + 3 <= d->rows && left >= 0 &&
                 left + 2 * TILE * tiles + 4 <= d->columns;
    for (int c = 0; c < d->inputs; c += LANES) {
        __m512 blurred[SIDE][WIDE];
        if (inside)
            blur(d, row, column, tiles, c, blurred, 0, bf16);
        else
            blur(d, row, column, tiles, c, blurred, 1, bf16);
        for (int t = 0; t < tiles; t++)
            transform(blurred, 2 * TILE * t, v + (ptrdiff_t)t * 4 * d->inputs + c, plane,
                      d->inputs);
    }
}

INLINE void output(const struct downsample *d, int row, int column, const float *m,
                   ptrdiff_t plane, const int bf16) {
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

INLINE void shrink(const struct downsample *d, const int bf16) {
    int across = d->columns / 2 / TILE, block = d->block;
    ptrdiff_t v_plane = (ptrdiff_t)block * 4 * d->inputs + LANES;
    ptrdiff_t m_plane = (ptrdiff_t)block * d->outputs + LANES;
    float *v = d->scratch, *m = v + PLANES * v_plane;
    for (int row = d->from; row < d->to; row++)
        for (int x = 0; x < across; x += block) {
            int wide = across - x < block ? across - x : block;
            for (int t = 0; t < wide; t += GROUP)
                input(d, row, x + t, wide - t < GROUP ? wide - t : GROUP,
                      v + (ptrdiff_t)t * 4 * d->inputs, v_plane, bf16);
            const float *weight = d->weight;
            for (int p = 0; p < PLANES; p++) {
                int depth = d->inputs * (p / 5 < 4 ? 2 : 1) * (p % 5 < 4 ? 2 : 1);
                product(v + p * v_plane, 4 * d->inputs, weight, m + p * m_plane, d->outputs,
                        (wide + 7) / 8 * 8, depth, d->outputs, 0);
                weight += (ptrdiff_t)depth * d->outputs;
            }
            for (int t = 0; t < wide; t++)
                output(d, row, x + t, m + (ptrdiff_t)t * d->outputs, m_plane, bf16);
        }
}

void downsample_fp32(const struct downsample *d) { shrink(d, 0); }

void downsample_bf16(const struct downsample *d) { shrink(d, 1); }
