/* A 3x3 transposed convolution of stride 2, the FIR blur behind it, bias and leaky ReLU.
 *
 * Even rows of the transposed convolution have two taps, odd ones one, columns likewise: each of
 * the four phases is a convolution of its own, with two taps by Winograd's F(4, 2), points +-3/8,
 * +-5/4 and infinity. A tile of 4x4 pixels becomes 8x8 by 81 products instead of 144.
 *
 * Tile row r gives rows 8 r to 8 r + 7 of the transposed convolution, and with three rows of the
 * tile row before rows 8 r - 2 to 8 r + 5 of the blurred result.
 */
#include <string.h>

#include "kernels.h"
#include "vector.h"

#define TILE 4
#define POINTS 5
#define LEAD 3 /* rows kept from the tile rows before */

static const float A = 0.375f, B = 1.25f, A2 = 0.140625f, B2 = 1.5625f;

/* B^T d for five values d, each of sixteen channels. */
INLINE void into(const __m512 d[5], __m512 v[5]) {
    const __m512 a = _mm512_set1_ps(A), b = _mm512_set1_ps(B), a2 = _mm512_set1_ps(A2),
                 b2 = _mm512_set1_ps(B2);
    __m512 even = _mm512_fnmadd_ps(b2, d[0], d[2]), odd = _mm512_fnmadd_ps(b2, d[1], d[3]);
    v[0] = _mm512_fmadd_ps(a, even, odd);
    v[1] = _mm512_fnmadd_ps(a, even, odd);
    even = _mm512_fnmadd_ps(a2, d[0], d[2]);
    odd = _mm512_fnmadd_ps(a2, d[1], d[3]);
    v[2] = _mm512_fmadd_ps(b, even, odd);
    v[3] = _mm512_fnmadd_ps(b, even, odd);
    v[4] = _mm512_fnmadd_ps(_mm512_set1_ps(A2 + B2), d[2],
                            _mm512_fmadd_ps(_mm512_set1_ps(A2 * B2), d[0], d[4]));
}

/* A^T m for five values m. */
INLINE void out_of(const __m512 m[5], __m512 y[4]) {
    const __m512 a = _mm512_set1_ps(A), b = _mm512_set1_ps(B), a2 = _mm512_set1_ps(A2),
                 b2 = _mm512_set1_ps(B2);
    __m512 inner = _mm512_add_ps(m[0], m[1]), outer = _mm512_add_ps(m[2], m[3]);
    y[0] = _mm512_add_ps(inner, outer);
    y[2] = _mm512_fmadd_ps(b2, outer, _mm512_mul_ps(a2, inner));
    inner = _mm512_mul_ps(a, _mm512_sub_ps(m[0], m[1]));
    outer = _mm512_mul_ps(b, _mm512_sub_ps(m[2], m[3]));
    y[1] = _mm512_add_ps(inner, outer);
    y[3] = _mm512_fmadd_ps(b2, outer, _mm512_fmadd_ps(a2, inner, m[4]));
}

/* Where the phases lie among what is transformed, counted in planes of `tiles` tiles. */
enum { BOTH = 0, ROWS = 25, COLUMNS = 45, NEITHER = 65, PLANES = 81 };

/* Transform a tile, sixteen channels: plane k to v[k * plane]. */
INLINE void input_tile(const struct upsample *u, int row, int column, int channel, float *v,
                       ptrdiff_t plane, const int border, const int bf16) {
    __m512 style = _mm512_loadu_ps(u->style + channel), d[5][5], lines[5][5];
    ptrdiff_t below = u->columns * u->pixel;
    ptrdiff_t first = (row * TILE - 1) * below + (column * TILE - 1) * u->pixel + channel;
#pragma GCC unroll 5
    for (int j = 0; j < 5; j++) {
        int x = column * TILE - 1 + j;
        __m512 line[5], t[5];
#pragma GCC unroll 5
        for (int k = 0; k < 5; k++) {
            int y = row * TILE - 1 + k;
            ptrdiff_t at = first + k * below + j * u->pixel;
            line[k] = _mm512_setzero_ps();
            if (!border || (y >= 0 && y < u->rows && x >= 0 && x < u->columns))
                line[k] = _mm512_mul_ps(style, load(element(u->source, at, bf16), bf16));
            d[k][j] = line[k];
        }
        into(line, t);
#pragma GCC unroll 5
        for (int k = 0; k < 5; k++)
            lines[k][j] = t[k];
    }
    for (int k = 0; k < 5; k++) {
        __m512 t[5];
        into(lines[k], t);
#pragma GCC unroll 5
        for (int j = 0; j < 5; j++)
            _mm512_storeu_ps(v + (BOTH + 5 * k + j) * plane, t[j]);
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++)
            _mm512_storeu_ps(v + (ROWS + 4 * k + j) * plane, lines[k][j + 1]);
    }
    for (int k = 0; k < 4; k++) {
        __m512 t[5];
        into(d[k + 1], t);
#pragma GCC unroll 5
        for (int j = 0; j < 5; j++)
            _mm512_storeu_ps(v + (COLUMNS + 4 * j + k) * plane, t[j]);
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++)
            _mm512_storeu_ps(v + (NEITHER + 4 * k + j) * plane, d[k + 1][j + 1]);
    }
}

INLINE void input(const struct upsample *u, int row, int column, float *v, ptrdiff_t plane,
                  const int bf16) {
    int inside = row > 0 && TILE * (row + 1) <= u->rows && column > 0 &&
                 TILE * (column + 1) <= u->columns;
    for (int c = 0; c < u->inputs; c += LANES)
        if (inside)
            input_tile(u, row, column, c, v + c, plane, 0, bf16);
        else
            input_tile(u, row, column, c, v + c, plane, 1, bf16);
}

/* Write a tile of the transposed convolution, sixteen outputs, from its 81 products. */
INLINE void output_tile(const float *m, ptrdiff_t plane, float *out, ptrdiff_t pixel,
                        ptrdiff_t line) {
    __m512 lines[4][5];
    for (int j = 0; j < 5; j++) {
        __m512 d[5], y[4];
#pragma GCC unroll 5
        for (int k = 0; k < 5; k++)
            d[k] = _mm512_loadu_ps(m + (BOTH + 5 * k + j) * plane);
        out_of(d, y);
#pragma GCC unroll 4
        for (int k = 0; k < 4; k++)
            lines[k][j] = y[k];
    }
    for (int k = 0; k < 4; k++) {
        __m512 d[5], y[4];
        out_of(lines[k], y);
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++)
            _mm512_storeu_ps(out + 2 * k * line + 2 * j * pixel, y[j]);
#pragma GCC unroll 5
        for (int j = 0; j < 5; j++)
            d[j] = _mm512_loadu_ps(m + (ROWS + 4 * j + k) * plane);
        out_of(d, y); /* of column k */
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++)
            _mm512_storeu_ps(out + 2 * j * line + (2 * k + 1) * pixel, y[j]);
#pragma GCC unroll 5
        for (int j = 0; j < 5; j++)
            d[j] = _mm512_loadu_ps(m + (COLUMNS + 4 * j + k) * plane);
        out_of(d, y); /* of row k */
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++) {
            _mm512_storeu_ps(out + (2 * k + 1) * line + 2 * j * pixel, y[j]);
            _mm512_storeu_ps(out + (2 * k + 1) * line + (2 * j + 1) * pixel,
                             _mm512_loadu_ps(m + (NEITHER + 4 * k + j) * plane));
        }
    }
}

/* The 36 matrix products; planes of one matrix lie behind each other. */
INLINE void products(const struct upsample *u, const float *v, float *m, ptrdiff_t v_plane,
                     ptrdiff_t m_plane, int tiles) {
    const float *weight = u->weight;
    for (int plane = 0, many; plane < PLANES; plane += many) {
        many = plane < ROWS ? 1 : plane < NEITHER ? 4 : 16;
        for (int k = 0; k < many; k++)
            product(v + (plane + k) * v_plane, u->inputs, weight, m + (plane + k) * m_plane,
                    u->outputs, tiles, u->inputs, u->outputs);
        weight += (ptrdiff_t)u->inputs * u->outputs;
    }
}

/* Rows of the result from as many rows and LEAD more of the transposed convolution. */
INLINE void blur(const struct upsample *u, const float *raised, int rows, int first,
                 const int bf16) {
    enum { RUN = 64 };
    int width = 2 * u->columns;
    ptrdiff_t pixel = u->outputs, line = (ptrdiff_t)u->raised_width * pixel;
    const __m512 three = _mm512_set1_ps(3.0f);
    for (int y = 0; y < rows; y++) {
        if (first + y < u->from || first + y >= u->to)
            continue;
        ptrdiff_t at = (ptrdiff_t)(first + y - u->from) * width;
        for (int x = 0; x < width; x += RUN)
            for (int o = 0; o < u->outputs; o += LANES) {
                const float *here = raised + y * line + x * pixel + o;
                __m512 scale = _mm512_loadu_ps(u->scale + o), bias = _mm512_loadu_ps(u->bias + o);
                int run = width - x < RUN ? width - x : RUN;
                __m512 sums[3] = {_mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps()};
                for (int k = 0; k < run + 3; k++, here += pixel) {
                    __m512 outer = _mm512_add_ps(_mm512_loadu_ps(here),
                                                 _mm512_loadu_ps(here + 3 * line));
                    __m512 inner = _mm512_add_ps(_mm512_loadu_ps(here + line),
                                                 _mm512_loadu_ps(here + 2 * line));
                    __m512 sum = _mm512_fmadd_ps(three, inner, outer);
                    if (k >= 3) {
                        outer = _mm512_add_ps(sums[0], sum);
                        inner = _mm512_add_ps(sums[1], sums[2]);
                        outer = _mm512_fmadd_ps(three, inner, outer);
                        store((void *)element(u->out, (at + x + k - 3) * pixel + o, bf16),
                              leaky(_mm512_fmadd_ps(outer, scale, bias)), bf16);
                    }
                    sums[0] = sums[1], sums[1] = sums[2], sums[2] = sum;
                }
            }
    }
}

INLINE void enlarge(const struct upsample *u, const int bf16) {
    int across = u->columns / TILE + 1, block = u->block;
    ptrdiff_t v_plane = (ptrdiff_t)block * u->inputs + LANES;
    ptrdiff_t m_plane = (ptrdiff_t)block * u->outputs + LANES;
    float *v = u->scratch, *m = v + PLANES * v_plane;
    ptrdiff_t line = (ptrdiff_t)u->raised_width * u->outputs;
    int high = block / across > 1 ? block / across : 1;
    for (int row = u->first; row < u->last; row += high) {
        int some = u->last - row < high ? u->last - row : high;
        float *raised = u->raised + LEAD * line + u->outputs; /* behind a column of zeros */
        for (int x = 0; x < across; x += block) {
            int wide = across - x < block ? across - x : block;
            for (int t = 0; t < some * wide; t++)
                input(u, row + t / wide, x + t % wide, v + (ptrdiff_t)t * u->inputs, v_plane, bf16);
            products(u, v, m, v_plane, m_plane, (some * wide + 7) / 8 * 8);
            for (int t = 0; t < some * wide; t++)
                for (int o = 0; o < u->outputs; o += LANES)
                    output_tile(m + (ptrdiff_t)t * u->outputs + o, m_plane,
                                raised + t / wide * 8 * line +
                                    (ptrdiff_t)(x + t % wide) * 8 * u->outputs + o,
                                u->outputs, line);
        }
        blur(u, u->raised, 8 * some, 8 * row - 2, bf16);
        memmove(u->raised, u->raised + 8 * some * line, LEAD * line * sizeof *u->raised);
    }
}

void upsample_fp32(const struct upsample *u) { enlarge(u, 0); }

void upsample_bf16(const struct upsample *u) { enlarge(u, 1); }
