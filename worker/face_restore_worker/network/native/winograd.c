/* A 3x3 convolution of two planes beside each other by Winograd's F(4x4, 3x3), bias and leaky ReLU.
 *
 * The same function as cpu_winograd.py, points 0, +-2/3, +-3/2 and infinity; but a block of tiles
 * goes through input transform, 36 matrix products and output transform in the cache. For planes in
 * bf16 the products are of int16: twice as fast as fp32, and what a few tiles and channels have is
 * scaled to 14 bits and a sign, so less is lost than by rounding the result to bf16.
 */
#include "kernels.h"
#include "vector.h"

#define TILE 4
#define GROUP 8 /* tiles beside each other that are transformed together */
#define POINTS 36
#define DEPTH 64 /* channels whose products are summed as integers */
#define ROW_SUM                                                                                    \
    5.4166675f /* (1 + A) (1 + B2): of B^T's rows, the largest sum of absolute values              \
                */

static const float A = 2.0f / 3.0f, B = 1.5f, A2 = 4.0f / 9.0f, B2 = 2.25f;

/* B^T d for six values d, each of sixteen channels. */
INLINE void into(const __m512 d[6], __m512 v[6]) {
    const __m512 a = _mm512_set1_ps(A), b = _mm512_set1_ps(B), a2 = _mm512_set1_ps(A2),
                 b2 = _mm512_set1_ps(B2), both = _mm512_set1_ps(A2 + B2);
    __m512 even = _mm512_fnmadd_ps(b2, d[2], d[4]), odd = _mm512_fnmadd_ps(b2, d[1], d[3]);
    v[1] = _mm512_fmadd_ps(a, odd, even);
    v[2] = _mm512_fnmadd_ps(a, odd, even);
    even = _mm512_fnmadd_ps(a2, d[2], d[4]);
    odd = _mm512_fnmadd_ps(a2, d[1], d[3]);
    v[3] = _mm512_fmadd_ps(b, odd, even);
    v[4] = _mm512_fnmadd_ps(b, odd, even);
    v[0] = _mm512_add_ps(_mm512_fnmadd_ps(both, d[2], d[4]), d[0]);
    v[5] = _mm512_add_ps(_mm512_fnmadd_ps(both, d[3], d[5]), d[1]);
}

/* A^T m for six values m. */
INLINE void out_of(const __m512 m[6], __m512 y[4]) {
    const __m512 a = _mm512_set1_ps(A), b = _mm512_set1_ps(B), a2 = _mm512_set1_ps(A2),
                 b2 = _mm512_set1_ps(B2);
    __m512 inner = _mm512_add_ps(m[1], m[2]), outer = _mm512_add_ps(m[3], m[4]);
    y[0] = _mm512_add_ps(_mm512_add_ps(m[0], inner), outer);
    y[2] = _mm512_fmadd_ps(b2, outer, _mm512_mul_ps(a2, inner));
    inner = _mm512_mul_ps(a, _mm512_sub_ps(m[1], m[2]));
    outer = _mm512_mul_ps(b, _mm512_sub_ps(m[3], m[4]));
    y[1] = _mm512_add_ps(inner, outer);
    y[3] = _mm512_fmadd_ps(b2, outer, _mm512_fmadd_ps(a2, inner, m[5]));
}

/* Where the rows of a line of tiles begin in a plane, null outside of it. */
INLINE void find_rows(const struct winograd *w, const void *source, ptrdiff_t pixel, int row,
                      const char *rows[6], const int bf16) {
    for (int k = 0; k < 6; k++) {
        int y = row * TILE + k - w->top;
        rows[k] = y >= 0 && y < w->rows_in
                      ? element(source, (ptrdiff_t)y * w->columns * pixel, bf16)
                      : NULL;
    }
}

/* Transform the columns of `tiles` tiles beside each other, sixteen channels, to lines[k][column];
 * `first` is the column left of the first tile. `part`: the channels are those of the encoder's
 * feature, still without gain, bias and leaky ReLU. */
INLINE void columns(const struct winograd *w, const char *const rows[6], ptrdiff_t pixel, int first,
                    int tiles, __m512 style, __m512 gain, __m512 shift,
                    __m512 lines[6][GROUP * TILE + 2], const int part, const int bf16) {
    for (int x = 0; x < tiles * TILE + 2; x++) {
        int column = first + x, inside = column >= 0 && column < w->columns;
        __m512 d[6], t[6];
#pragma GCC unroll 6
        for (int k = 0; k < 6; k++) {
            d[k] = _mm512_setzero_ps();
            if (inside && rows[k]) {
                d[k] = load(element(rows[k], column * pixel, bf16), bf16);
                if (part)
                    d[k] = leaky(_mm512_fmadd_ps(d[k], gain, shift));
                d[k] = _mm512_mul_ps(d[k], style);
            }
        }
        into(d, t);
#pragma GCC unroll 6
        for (int k = 0; k < 6; k++)
            lines[k][x] = t[k];
    }
}

/* The same for sixteen channels from `channel` on, of image or encoder part. */
INLINE void channel_columns(const struct winograd *w, int row, int first, int tiles, int channel,
                            __m512 lines[6][GROUP * TILE + 2], const int bf16) {
    __m512 style = _mm512_loadu_ps(w->style + channel);
    const char *rows[6];
    if (channel < w->image_channels) {
        find_rows(w, element(w->image, channel, bf16), w->image_pixel, row, rows, bf16);
        columns(w, rows, w->image_pixel, first, tiles, style, style, style, lines, 0, bf16);
        return;
    }
    channel -= w->image_channels;
    __m512 gain = _mm512_set1_ps(w->gain), shift = _mm512_loadu_ps(w->shift + channel);
    find_rows(w, element(w->encoder, channel, bf16), w->encoder_pixel, row, rows, bf16);
    columns(w, rows, w->encoder_pixel, first, tiles, style, gain, shift, lines, 1, bf16);
}

/* Input transform of `tiles` tiles from tile (row, column) on: point k of tile t to
 * v[k * plane + t * inputs]. */
INLINE void input(const struct winograd *w, int row, int column, int tiles, float *v,
                  ptrdiff_t plane) {
    int inputs = w->image_channels + w->encoder_channels;
    for (int c = 0; c < inputs; c += LANES) {
        __m512 lines[6][GROUP * TILE + 2];
        channel_columns(w, row, column * TILE - 1, tiles, c, lines, 0);
        for (int t = 0; t < tiles; t++)
            for (int k = 0; k < 6; k++) {
                __m512 u[6];
                into(&lines[k][t * TILE], u);
#pragma GCC unroll 6
                for (int j = 0; j < 6; j++)
                    _mm512_storeu_ps(v + (6 * j + k) * plane + t * inputs + c, u[j]);
            }
    }
}

/* The same as int16, for planes in bf16: values of up to DEPTH channels and of a row of points are
 * scaled together by what they are at most, and factor[depth / DEPTH * 6 + row] takes it back. Of
 * 32 channels the first and the second sixteen take turns by four. */
INLINE void input_int16(const struct winograd *w, int row, int column, int tiles, int16_t *v,
                        ptrdiff_t plane, float *factor) {
    int inputs = w->image_channels + w->encoder_channels;
    for (int first = 0; first < inputs; first += DEPTH, factor += 6) {
        __m512 lines[DEPTH / LANES][6][GROUP * TILE + 2], scale[6];
        int groups = (inputs - first < DEPTH ? inputs - first : DEPTH) / LANES;
        for (int g = 0; g < groups; g++)
            channel_columns(w, row, column * TILE - 1, tiles, first + g * LANES, lines[g], 1);
        for (int k = 0; k < 6; k++) {
            __m512 most = _mm512_setzero_ps();
            for (int g = 0; g < groups; g++)
                for (int x = 0; x < tiles * TILE + 2; x++)
                    most = larger(most, lines[g][k][x]);
            scale[k] = int_scale(most, ROW_SUM, factor + k);
        }
        for (int g = 0; g < groups; g += 2)
            for (int t = 0; t < tiles; t++)
                for (int k = 0; k < 6; k++) {
                    __m512 d[6], a[6], b[6];
#pragma GCC unroll 6
                    for (int j = 0; j < 6; j++)
                        d[j] = _mm512_mul_ps(lines[g][k][t * TILE + j], scale[k]);
                    into(d, a);
#pragma GCC unroll 6
                    for (int j = 0; j < 6; j++)
                        d[j] = _mm512_mul_ps(lines[g + 1][k][t * TILE + j], scale[k]);
                    into(d, b);
#pragma GCC unroll 6
                    for (int j = 0; j < 6; j++)
                        _mm512_storeu_si512(v + (6 * j + k) * plane + t * inputs + first +
                                                g * LANES,
                                            pack(a[j], b[j]));
                }
    }
}

/* Output transform of `tiles` tiles to tile (row, column) and on, with scale, bias, leaky ReLU. */
INLINE void output(const struct winograd *w, int row, int column, int tiles, const float *m,
                   ptrdiff_t plane, const int bf16) {
    for (int t = 0; t < tiles; t++, m += w->outputs, column++)
        for (int o = 0; o < w->outputs; o += LANES) {
            __m512 scale = _mm512_loadu_ps(w->scale + o), bias = _mm512_loadu_ps(w->bias + o);
            __m512 lines[4][6];
            for (int j = 0; j < 6; j++) {
                __m512 d[6], y[4];
#pragma GCC unroll 6
                for (int k = 0; k < 6; k++)
                    d[k] = _mm512_loadu_ps(m + (6 * j + k) * plane + o);
                out_of(d, y);
#pragma GCC unroll 4
                for (int k = 0; k < 4; k++)
                    lines[k][j] = y[k];
            }
            for (int k = 0; k < 4; k++) {
                __m512 y[4];
                out_of(lines[k], y);
                ptrdiff_t at = ((ptrdiff_t)(row * TILE + k) * w->columns + column * TILE);
#pragma GCC unroll 4
                for (int j = 0; j < 4; j++)
                    store((void *)element(w->out, (at + j) * w->out_pixel + o, bf16),
                          leaky(_mm512_fmadd_ps(y[j], scale, bias)), bf16);
            }
        }
}

INLINE void convolve(const struct winograd *w, const int bf16) {
    int inputs = w->image_channels + w->encoder_channels, across = w->columns / TILE;
    int down = w->rows_out / TILE, block = w->block;
    int columns = smaller(across, block), rows = block / columns;
    /* A line of padding keeps the 36 planes from falling into the same lines of the cache. */
    ptrdiff_t v_plane = (ptrdiff_t)block * inputs + (bf16 ? 2 * LANES : LANES);
    ptrdiff_t m_plane = (ptrdiff_t)block * w->outputs + LANES;
    float *v = w->scratch, *m = v + POINTS * v_plane / (bf16 ? 2 : 1);
    float *factors = m + POINTS * m_plane;
    int depth = smaller(inputs, DEPTH) / 2, depths = inputs / (2 * depth); /* runs of pairs */
    ptrdiff_t step = 6 * depths;
    for (int y = 0; y < down; y += rows)
        for (int x = 0; x < across; x += columns) {
            int high = smaller(rows, down - y), wide = smaller(columns, across - x);
            for (int r = 0; r < high; r++)
                for (int t = 0; t < wide; t += GROUP) {
                    int at = r * wide + t, some = smaller(GROUP, wide - t);
                    if (bf16)
                        input_int16(w, y + r, x + t, some, (int16_t *)v + (ptrdiff_t)at * inputs,
                                    v_plane, factors + at / GROUP * step);
                    else
                        input(w, y + r, x + t, some, v + (ptrdiff_t)at * inputs, v_plane);
                }
            int tiles = (high * wide + 15) / 16 * 16;
            for (int p = 0; p < POINTS; p++)
                if (bf16)
                    int_product((float *)((int16_t *)v + p * v_plane), inputs / 2,
                                (const float *)w->weight + (ptrdiff_t)p * inputs / 2 * w->outputs,
                                m + p * m_plane, w->outputs, tiles, depth, depths, w->outputs,
                                factors + p % 6, step, 6, w->unit + p * w->outputs, GROUP);
                else
                    product(v + p * v_plane, inputs,
                            (const float *)w->weight + (ptrdiff_t)p * inputs * w->outputs,
                            m + p * m_plane, w->outputs, tiles, inputs, w->outputs, FP32);
            for (int r = 0; r < high; r++)
                output(w, y + r, x, wide, m + (ptrdiff_t)r * wide * w->outputs, m_plane, bf16);
        }
}

void winograd_fp32(const struct winograd *w) { convolve(w, 0); }

void winograd_bf16(const struct winograd *w) { convolve(w, 1); }
