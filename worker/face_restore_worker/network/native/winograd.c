/* A 3x3 convolution of two planes beside each other by Winograd's F(4x4, 3x3), bias and leaky ReLU.
 *
 * The same function as cpu_winograd.py, points 0, +-2/3, +-3/2 and infinity; but a block of tiles
 * goes through input transform, 36 matrix products and output transform in the cache.
 */
#include "kernels.h"
#include "vector.h"

#define TILE 4
#define GROUP 8 /* tiles beside each other that are transformed together */
#define POINTS 36

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

/* Transform `tiles` tiles beside each other, 16 channels: point k of tile t to v[k * plane + t * row].
 *
 * `first` is the column left of the first tile; rows outside of the plane are null. `part`: the
 * channels are those of the encoder's feature, still without gain, bias and leaky ReLU. */
INLINE void transform(const struct winograd *w, const char *const rows[6], ptrdiff_t pixel,
                      int first, int tiles, __m512 style, __m512 gain, __m512 shift, float *v,
                      ptrdiff_t plane, ptrdiff_t row, const int part, const int bf16) {
    __m512 lines[6][GROUP * TILE + 2];
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
    for (int t = 0; t < tiles; t++, v += row)
        for (int k = 0; k < 6; k++) {
            __m512 u[6];
            into(&lines[k][t * TILE], u);
#pragma GCC unroll 6
            for (int j = 0; j < 6; j++)
                _mm512_storeu_ps(v + (6 * j + k) * plane, u[j]);
        }
}

/* Input transform of `tiles` tiles from tile (row, column) on. */
INLINE void input(const struct winograd *w, int row, int column, int tiles, float *v,
                  ptrdiff_t plane, const int bf16) {
    int inputs = w->image_channels + w->encoder_channels;
    for (int c = 0; c < inputs; c += LANES) {
        int part = c >= w->image_channels, here = part ? c - w->image_channels : c;
        const void *source = part ? w->encoder : w->image;
        ptrdiff_t pixel = part ? w->encoder_pixel : w->image_pixel;
        const char *rows[6];
        for (int k = 0; k < 6; k++) {
            int y = row * TILE + k - w->top;
            rows[k] = y >= 0 && y < w->rows_in
                          ? element(source, (ptrdiff_t)y * w->columns * pixel + here, bf16)
                          : NULL;
        }
        __m512 style = _mm512_loadu_ps(w->style + c);
        if (part) {
            __m512 gain = _mm512_set1_ps(w->gain), shift = _mm512_loadu_ps(w->shift + here);
            transform(w, rows, pixel, column * TILE - 1, tiles, style, gain, shift, v + c, plane,
                      inputs, 1, bf16);
        } else
            transform(w, rows, pixel, column * TILE - 1, tiles, style, style, style, v + c, plane,
                      inputs, 0, bf16);
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

INLINE int smaller(int a, int b) { return a < b ? a : b; }

INLINE void convolve(const struct winograd *w, const int bf16) {
    int inputs = w->image_channels + w->encoder_channels, across = w->columns / TILE;
    int down = w->rows_out / TILE, block = w->block;
    int columns = smaller(across, block), rows = block / columns;
    /* A line of padding keeps the 36 planes from falling into the same lines of the cache. */
    ptrdiff_t v_plane = (ptrdiff_t)block * inputs + LANES;
    ptrdiff_t m_plane = (ptrdiff_t)block * w->outputs + LANES;
    float *v = w->scratch, *m = v + POINTS * v_plane;
    for (int y = 0; y < down; y += rows)
        for (int x = 0; x < across; x += columns) {
            int high = smaller(rows, down - y), wide = smaller(columns, across - x);
            for (int r = 0; r < high; r++)
                for (int t = 0; t < wide; t += GROUP)
                    input(w, y + r, x + t, smaller(GROUP, wide - t),
                          v + (ptrdiff_t)(r * wide + t) * inputs, v_plane, bf16);
            int tiles = (high * wide + 15) / 16 * 16;
            for (int p = 0; p < POINTS; p++)
                product(v + p * v_plane, inputs,
                        w->weight + (ptrdiff_t)p * inputs * w->outputs, m + p * m_plane,
                        w->outputs, tiles, inputs, w->outputs, 0);
            for (int r = 0; r < high; r++)
                output(w, y + r, x, wide, m + (ptrdiff_t)r * wide * w->outputs, m_plane, bf16);
        }
}

void winograd_fp32(const struct winograd *w) { convolve(w, 0); }

void winograd_bf16(const struct winograd *w) { convolve(w, 1); }
