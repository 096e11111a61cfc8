/* The end of a level: the encoder part beside the image part, and what both are in RGB. */
#include "kernels.h"
#include "vector.h"

/* The sums of sixteen vectors, as one vector. */
INLINE __m512 sums(const __m512 x[LANES]) {
    __m512 four[4];
#pragma GCC unroll 4
    for (int k = 0; k < 4; k++) {
        const __m512 *y = x + 4 * k;
        __m512 a = _mm512_add_ps(_mm512_unpacklo_ps(y[0], y[1]), _mm512_unpackhi_ps(y[0], y[1]));
        __m512 b = _mm512_add_ps(_mm512_unpacklo_ps(y[2], y[3]), _mm512_unpackhi_ps(y[2], y[3]));
        __m512d c = _mm512_castps_pd(a), d = _mm512_castps_pd(b);
        four[k] = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(c, d)),
                                _mm512_castpd_ps(_mm512_unpackhi_pd(c, d)));
    }
#pragma GCC unroll 2
    for (int k = 0; k < 4; k += 2)
        four[k] = _mm512_add_ps(_mm512_shuffle_f32x4(four[k], four[k + 1], 0x88),
                                _mm512_shuffle_f32x4(four[k], four[k + 1], 0xdd));
    return _mm512_add_ps(_mm512_shuffle_f32x4(four[0], four[2], 0x88),
                         _mm512_shuffle_f32x4(four[0], four[2], 0xdd));
}

/* The picture below, brought to twice its size, at row y and columns x to x + 15: bilinear between
 * the centres of pixels, in a border of zeros. */
INLINE __m512 enlarged(const struct finish *f, int colour, int y, int x) {
    ptrdiff_t width = f->columns / 2 + 2;
    const float *near = f->below + (ptrdiff_t)colour * f->below_plane + (y / 2 + 1) * width + x / 2;
    const float *far = near + (y % 2 ? width : -width);
    /* From two halves of eight, one after the other: 0, 0', 1, 1', ... */
    __m512i zip = _mm512_set_epi32(23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    __m512 quarter = _mm512_set1_ps(0.25f), most = _mm512_set1_ps(0.75f);
    __m256 line[3];
#pragma GCC unroll 3
    for (int k = 0; k < 3; k++)
        line[k] = _mm256_fmadd_ps(_mm512_castps512_ps256(most), _mm256_loadu_ps(near + k),
                                  _mm256_mul_ps(_mm512_castps512_ps256(quarter),
                                                _mm256_loadu_ps(far + k)));
    /* Column 2 i is a quarter of pixel i and the rest of i + 1, column 2 i + 1 the mirror image. */
    __m512 middle = _mm512_permutex2var_ps(_mm512_castps256_ps512(line[1]), zip,
                                           _mm512_castps256_ps512(line[1]));
    __m512 sides = _mm512_permutex2var_ps(_mm512_castps256_ps512(line[0]), zip,
                                          _mm512_castps256_ps512(line[2]));
    return _mm512_fmadd_ps(most, middle, _mm512_mul_ps(quarter, sides));
}

INLINE void pixels(const struct finish *f, int y, int x, const int bf16) {
    __m512 colours[3][LANES];
    for (int p = 0; p < LANES; p++) {
        ptrdiff_t at = (ptrdiff_t)y * f->columns + x + p;
        __m512 sum[3] = {_mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps()};
        for (int c = 0; c < f->channels; c += LANES) {
            __m512 image = load(element(f->image, at * f->image_pixel + c, bf16), bf16);
            __m512 part = load(element(f->encoder, at * f->encoder_pixel + c, bf16), bf16);
            part = leaky(
                _mm512_fmadd_ps(part, _mm512_set1_ps(f->gain), _mm512_loadu_ps(f->shift + c)));
            if (f->part)
                store((void *)element(f->part, at * f->part_pixel + c, bf16), part, bf16);
#pragma GCC unroll 3
            for (int k = 0; k < 3; k++) {
                const float *weight = f->weight + (ptrdiff_t)k * 2 * f->channels + c;
                sum[k] = _mm512_fmadd_ps(image, _mm512_loadu_ps(weight), sum[k]);
                sum[k] = _mm512_fmadd_ps(part, _mm512_loadu_ps(weight + f->channels), sum[k]);
            }
        }
#pragma GCC unroll 3
        for (int k = 0; k < 3; k++)
            colours[k][p] = sum[k];
    }
    for (int k = 0; k < 3; k++) {
        __m512 colour = _mm512_add_ps(sums(colours[k]), _mm512_set1_ps(f->bias[k]));
        colour = _mm512_add_ps(colour, enlarged(f, k, f->first + y, x));
        _mm512_storeu_ps(f->out + k * f->out_plane + (f->first + y) * f->out_line + x,
                         colour);
    }
}

void finish_fp32(const struct finish *f) {
    for (int y = 0; y < f->rows; y++)
        for (int x = 0; x < f->columns; x += LANES)
            pixels(f, y, x, 0);
}

void finish_bf16(const struct finish *f) {
    for (int y = 0; y < f->rows; y++)
        for (int x = 0; x < f->columns; x += LANES)
            pixels(f, y, x, 1);
}
