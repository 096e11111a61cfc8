/* A 3x3 transposed convolution of stride 2, the FIR blur behind it, bias and leaky ReLU.
 *
 * Even rows of the transposed convolution have two taps, odd ones one, columns likewise: each of
 * the four phases is a convolution of its own, with two taps by Winograd's F(4, 2), points +-3/8,
 * +-5/4 and infinity. A tile of 4x4 pixels becomes 8x8 by 81 products instead of 144.
 *
 * There are two ways to them. `apart`: each phase transforms what it needs, 81 planes, to be
 * multiplied by 36 matrices. `shared`: one transform to 25 planes, whose four finite points are
 * those of one tap too (as in downsample.c), for 81 matrices: for the fine levels, where weights
 * are small and storing planes costs most.
 *
 * Tile row r gives rows 8 r to 8 r + 7 of the transposed convolution, and with three rows of the
 * tile row before rows 8 r - 2 to 8 r + 5 of the blurred result.
 */
#include <string.h>

#include "filter2.h"
#include "kernels.h"
#include "vector.h"

#define TILE 4
#define LEAD 3 /* rows kept from the tile rows before */

/* Where the phases lie among what is transformed, counted in planes of `tiles` tiles. */
enum { BOTH = 0, ROWS = 25, COLUMNS = 45, NEITHER = 65, PLANES = 81 };
#define POINTS 25 /* planes of the shared transform */
#define PHASES 4

/* B^T d for each half of five lines. */
INLINE void both(__m512 d[5][2], __m512 v[5][2], const int halves) {
    for (int h = 0; h < halves; h++) {
        __m512 line[5], points[5];
#pragma GCC unroll 5
        for (int k = 0; k < 5; k++)
            line[k] = d[k][h];
        into(line, points);
#pragma GCC unroll 5
        for (int k = 0; k < 5; k++)
            v[k][h] = points[k];
    }
}

/* Store sixteen values x[0], for bf16 32, of the even channels x[0] and of the odd ones x[1] behind
 * them: bf16 planes are multiplied in bf16, so what is transformed is rounded to it. */
INLINE void put(void *v, int k, ptrdiff_t plane, ptrdiff_t at, const __m512 x[2], const int bf16) {
    void *to = (void *)element(v, k * plane + at, bf16);
    if (bf16)
        _mm512_storeu_si512(to, (__m512i)_mm512_cvtne2ps_pbh(x[1], x[0]));
    else
        _mm512_storeu_ps(to, x[0]);
}

/* Read the pixels d that a tile takes, times style, and transform their columns to lines. Rows and
 * columns come in reverse, so that the finite points are those of the four that one tap takes. */
INLINE void read_tile(const struct upsample *u, int row, int column, int channel, __m512 d[5][5][2],
                      __m512 lines[5][5][2], const int border, const int bf16) {
    const int halves = bf16 ? 2 : 1;
    ptrdiff_t below = u->columns * u->pixel;
    ptrdiff_t first = (row * TILE - 1) * below + (column * TILE - 1) * u->pixel + channel;
    __m512 style[2];
    if (bf16)
        load_even_odd_fp32(u->style + channel, style, style + 1);
    else
        style[0] = _mm512_loadu_ps(u->style + channel);
#pragma GCC unroll 5
    for (int j = 0; j < 5; j++) {
        int x = column * TILE + 3 - j;
        __m512 line[2][5], points[5];
#pragma GCC unroll 5
        for (int k = 0; k < 5; k++) {
            int y = row * TILE + 3 - k;
            line[0][k] = line[1][k] = _mm512_setzero_ps();
            if (!border || (y >= 0 && y < u->rows && x >= 0 && x < u->columns)) {
                ptrdiff_t from = first + (4 - k) * below + (4 - j) * u->pixel;
                if (bf16)
                    load_even_odd(element(u->source, from, bf16), &line[0][k], &line[1][k]);
                else
                    line[0][k] = load(element(u->source, from, bf16), bf16);
            }
#pragma GCC unroll 2
            for (int h = 0; h < halves; h++)
                d[k][j][h] = line[h][k] = _mm512_mul_ps(style[h], line[h][k]);
        }
#pragma GCC unroll 2
        for (int h = 0; h < halves; h++) {
            into(line[h], points);
#pragma GCC unroll 5
            for (int k = 0; k < 5; k++)
                lines[k][j][h] = points[k];
        }
    }
}

/* Transform a tile, sixteen channels, for bf16 32, to value `at` of each plane of v. */
INLINE void input_tile(const struct upsample *u, int row, int column, int channel, void *v,
                       ptrdiff_t plane, ptrdiff_t at, const int border, const int shared,
                       const int bf16) {
    const int halves = bf16 ? 2 : 1;
    __m512 d[5][5][2], lines[5][5][2], t[5][2];
    read_tile(u, row, column, channel, d, lines, border, bf16);
    for (int k = 0; k < 5; k++) {
        both(lines[k], t, halves);
#pragma GCC unroll 5
        for (int j = 0; j < 5; j++)
            put(v, BOTH + 5 * k + j, plane, at, t[j], bf16);
#pragma GCC unroll 4
        for (int j = 0; j < 4 && !shared; j++)
            put(v, ROWS + 4 * k + j, plane, at, lines[k][j], bf16);
    }
    for (int k = 0; k < 4 && !shared; k++) {
        both(d[k], t, halves);
#pragma GCC unroll 5
        for (int j = 0; j < 5; j++)
            put(v, COLUMNS + 4 * j + k, plane, at, t[j], bf16);
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++)
            put(v, NEITHER + 4 * k + j, plane, at, d[k][j], bf16);
    }
}

INLINE void input(const struct upsample *u, int row, int column, void *v, ptrdiff_t plane,
                  ptrdiff_t at, const int shared, const int bf16) {
    int inside =
        row > 0 && TILE * (row + 1) <= u->rows && column > 0 && TILE * (column + 1) <= u->columns;
    for (int c = 0; c < u->inputs; c += bf16 ? 2 * LANES : LANES)
        if (inside)
            input_tile(u, row, column, c, v, plane, at + c, 0, shared, bf16);
        else
            input_tile(u, row, column, c, v, plane, at + c, 1, shared, bf16);
}

/* Write a tile of the transposed convolution, sixteen outputs, from its 81 products; in reverse,
 * as they came. */
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
            _mm512_storeu_ps(out + (6 - 2 * k) * line + (6 - 2 * j) * pixel, y[j]);
#pragma GCC unroll 5
        for (int j = 0; j < 5; j++)
            d[j] = _mm512_loadu_ps(m + (ROWS + 4 * j + k) * plane);
        out_of(d, y); /* of column k */
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++)
            _mm512_storeu_ps(out + (6 - 2 * j) * line + (7 - 2 * k) * pixel, y[j]);
#pragma GCC unroll 5
        for (int j = 0; j < 5; j++)
            d[j] = _mm512_loadu_ps(m + (COLUMNS + 4 * j + k) * plane);
        out_of(d, y); /* of row k */
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++) {
            _mm512_storeu_ps(out + (7 - 2 * k) * line + (6 - 2 * j) * pixel, y[j]);
            _mm512_storeu_ps(out + (7 - 2 * k) * line + (7 - 2 * j) * pixel,
                             _mm512_loadu_ps(m + (NEITHER + 4 * k + j) * plane));
        }
    }
}

/* Phases of a point of the shared transform: both even; where the column's point is finite, columns
 * odd; where the row's is, rows odd; where both are, both. */
INLINE int phases_of(int row, int column) { return (row < 4 ? 2 : 1) * (column < 4 ? 2 : 1); }

/* A phase's four by four values from its products: of finite points where rows or columns are
 * `odd`, as which they go to every other row and column of `out`. */
INLINE void shared_phase(const float *m, ptrdiff_t plane, ptrdiff_t outputs, float *out,
                         ptrdiff_t pixel, ptrdiff_t line, const int row_odd, const int column_odd) {
    const int rows = 5 - row_odd, columns = 5 - column_odd;
    __m512 lines[4][5], d[5], y[4];
#pragma GCC unroll 5
    for (int j = 0; j < columns; j++) {
        d[4] = _mm512_setzero_ps();
#pragma GCC unroll 5
        for (int k = 0; k < rows; k++) {
            int phase = row_odd * (j < 4 ? 2 : 1) + column_odd;
            d[k] = _mm512_loadu_ps(m + (5 * k + j) * plane + phase * outputs);
        }
        out_of(d, y);
#pragma GCC unroll 4
        for (int k = 0; k < 4; k++)
            lines[k][j] = y[k];
    }
#pragma GCC unroll 4
    for (int k = 0; k < 4; k++) {
        if (column_odd)
            lines[k][4] = _mm512_setzero_ps();
        out_of(lines[k], y);
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++) /* in reverse, as they came */
            _mm512_storeu_ps(out + (6 - 2 * k + row_odd) * line + (6 - 2 * j + column_odd) * pixel,
                             y[j]);
    }
}

/* The products of the shared transform: those of a point's phases lie behind each other. */
INLINE void shared_products(const struct upsample *u, const void *v, float *m, ptrdiff_t v_plane,
                            ptrdiff_t m_plane, int tiles, const int bf16) {
    const float *weight = u->weight;
    int depth = bf16 ? u->inputs / 2 : u->inputs; /* two bf16 are as one float */
    for (int point = 0; point < POINTS; point++) {
        int columns = phases_of(point / 5, point % 5) * u->outputs;
        product(element(v, point * v_plane, bf16), depth, weight, m + point * m_plane,
                PHASES * u->outputs, tiles, depth, columns, bf16 ? BF16 : FP32);
        weight += (ptrdiff_t)depth * columns;
    }
}

/* The 36 matrix products; planes of one matrix lie behind each other. */
INLINE void products(const struct upsample *u, const void *v, float *m, ptrdiff_t v_plane,
                     ptrdiff_t m_plane, int tiles, const int bf16) {
    const float *weight = u->weight;
    int depth = bf16 ? u->inputs / 2 : u->inputs; /* two bf16 are as one float */
    for (int plane = 0, many; plane < PLANES; plane += many) {
        many = plane < ROWS ? 1 : plane < NEITHER ? 4 : 16;
        for (int k = plane; k < plane + many; k++)
            product(element(v, k * v_plane, bf16), depth, weight, m + k * m_plane, u->outputs,
                    tiles, depth, u->outputs, bf16 ? BF16 : FP32);
        weight += u->matrix;
    }
}

/* Blur what lies in `near`: `rows` rows of the result from row `y` on, `columns` from `x` on. */
INLINE void blur(const struct upsample *u, const float *near, ptrdiff_t line, int y, int rows,
                 int x, int columns, const int bf16) {
    ptrdiff_t pixel = u->outputs, width = 2 * u->columns;
    const __m512 three = _mm512_set1_ps(3.0f);
    int left = x < 0 ? -x : 0, right = x + columns > width ? (int)width - x : columns;
    for (int r = 0; r < rows; r++) {
        if (y + r < u->from || y + r >= u->to)
            continue;
        for (int o = 0; o < u->outputs; o += LANES) {
            const float *here = near + r * line + left * pixel + o;
            ptrdiff_t at = ((y + r - u->from) * width + x) * u->out_pixel + o;
            __m512 scale = _mm512_loadu_ps(u->scale + o), bias = _mm512_loadu_ps(u->bias + o);
            __m512 sums[3] = {_mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps()};
#pragma GCC unroll 4
            for (int k = left - 3; k < right; k++, here += pixel) {
                __m512 outer =
                    _mm512_add_ps(_mm512_loadu_ps(here), _mm512_loadu_ps(here + 3 * line));
                __m512 inner =
                    _mm512_add_ps(_mm512_loadu_ps(here + line), _mm512_loadu_ps(here + 2 * line));
                __m512 sum = _mm512_fmadd_ps(three, inner, outer);
                if (k >= left) {
                    outer = _mm512_add_ps(sums[0], sum);
                    inner = _mm512_add_ps(sums[1], sums[2]);
                    outer = _mm512_fmadd_ps(three, inner, outer);
                    store((void *)element(u->out, at + k * u->out_pixel, bf16),
                          leaky(_mm512_fmadd_ps(outer, scale, bias)), bf16);
                }
                sums[0] = sums[1], sums[1] = sums[2], sums[2] = sum;
            }
        }
    }
}

/* Tiles `x` to `x + wide - 1` of `some` tile rows: `near` gets them behind LEAD columns and below
 * LEAD rows of what was before, `kept` the rows for the next tile row. */
INLINE void tiles(const struct upsample *u, int row, int some, int x, int wide, float *near,
                  ptrdiff_t line, const int shared, const int bf16) {
    ptrdiff_t pixel = u->outputs, kept_line = u->raised_width * pixel;
    ptrdiff_t m_pixel = shared ? PHASES * pixel : pixel;
    ptrdiff_t v_plane = (ptrdiff_t)u->block * u->inputs + LANES;
    ptrdiff_t m_plane = u->block * m_pixel + LANES;
    float *v = u->scratch, *kept = u->raised + (ptrdiff_t)x * 8 * pixel;
    float *m = v + (shared ? POINTS : PLANES) * v_plane, *inner = near + LEAD * (line + pixel);
    size_t run = sizeof *near * (size_t)(wide * 8 * pixel);
    int rounded = (some * wide + 7) / 8 * 8;
    for (int t = 0; t < some * wide; t++)
        input(u, row + t / wide, x + t % wide, v, v_plane, (ptrdiff_t)t * u->inputs, shared, bf16);
    if (shared)
        shared_products(u, v, m, v_plane, m_plane, rounded, bf16);
    else
        products(u, v, m, v_plane, m_plane, rounded, bf16);
    for (int k = 0; k < LEAD; k++)
        memcpy(inner + (k - LEAD) * line, kept + k * kept_line, run);
    for (int t = 0; t < some * wide; t++)
        for (int o = 0; o < u->outputs; o += LANES) {
            const float *from = m + t * m_pixel + o;
            float *to = inner + t / wide * 8 * line + t % wide * 8 * pixel + o;
            if (shared)
#pragma GCC unroll 4
                for (int phase = 0; phase < PHASES; phase++)
                    shared_phase(from, m_plane, pixel, to, pixel, line, phase / 2, phase % 2);
            else
                output_tile(from, m_plane, to, pixel, line);
        }
    for (int k = 0; k < LEAD; k++)
        memcpy(kept + k * kept_line, inner + (8 * some + k - LEAD) * line, run);
}

INLINE void enlarge(const struct upsample *u, const int shared, const int bf16) {
    int across = u->columns / TILE + 1, block = u->block;
    int most = across < block ? across : block, high = block / across > 1 ? block / across : 1;
    ptrdiff_t pixel = u->outputs, line = (LEAD + 8 * most) * pixel;
    float *near = u->raised + LEAD * u->raised_width * pixel;
    size_t lead = sizeof *near * (size_t)(LEAD * pixel);
    for (int row = u->first; row < u->last; row += high) {
        int some = u->last - row < high ? u->last - row : high;
        for (int r = 0; r < LEAD + 8 * some; r++)
            memset(near + r * line, 0, lead);
        for (int x = 0; x < across; x += block) {
            int wide = across - x < block ? across - x : block;
            tiles(u, row, some, x, wide, near, line, shared, bf16);
            blur(u, near, line, 8 * row - 2, 8 * some, 8 * x - 2, 8 * wide, bf16);
            for (int r = 0; r < LEAD + 8 * some; r++)
                memmove(near + r * line, near + r * line + 8 * wide * pixel, lead);
        }
    }
}

void upsample_fp32(const struct upsample *u) {
    if (u->shared)
        enlarge(u, 1, 0);
    else
        enlarge(u, 0, 0);
}

void upsample_bf16(const struct upsample *u) {
    if (u->shared)
        enlarge(u, 1, 1);
    else
        enlarge(u, 0, 1);
}
