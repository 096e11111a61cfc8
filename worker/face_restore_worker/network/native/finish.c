/* The end of a level: the encoder part beside the image part, and what both are in RGB. */
#include "kernels.h"
#include "vector.h"

/* Of four vectors the sums of each quarter: four sums for the first quarters, four for the second. */
INLINE __m512 quarter_sums(const __m512 x[4]) {
    __m512 a = _mm512_add_ps(_mm512_unpacklo_ps(x[0], x[1]), _mm512_unpackhi_ps(x[0], x[1]));
    __m512 b = _mm512_add_ps(_mm512_unpacklo_ps(x[2], x[3]), _mm512_unpackhi_ps(x[2], x[3]));
    __m512d c = _mm512_castps_pd(a), d = _mm512_castps_pd(b);
    return _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(c, d)),
                         _mm512_castpd_ps(_mm512_unpackhi_pd(c, d)));
}

/* The sums of sixteen vectors, as one vector. */
INLINE __m512 sums(const __m512 x[LANES]) {
    __m512 four[4];
#pragma GCC unroll 4
    for (int k = 0; k < 4; k++)
        four[k] = quarter_sums(x + 4 * k);
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
        line[k] = _mm256_fmadd_ps(
            _mm512_castps512_ps256(most), _mm256_loadu_ps(near + k),
            _mm256_mul_ps(_mm512_castps512_ps256(quarter), _mm256_loadu_ps(far + k)));
    /* Column 2 i is a quarter of pixel i and the rest of i + 1, column 2 i + 1 the mirror image. */
    __m512 middle = _mm512_permutex2var_ps(_mm512_castps256_ps512(line[1]), zip,
                                           _mm512_castps256_ps512(line[1]));
    __m512 sides = _mm512_permutex2var_ps(_mm512_castps256_ps512(line[0]), zip,
                                          _mm512_castps256_ps512(line[2]));
    return _mm512_fmadd_ps(most, middle, _mm512_mul_ps(quarter, sides));
}

/* Add bias and the picture below to the sums of sixteen pixels of a colour, and store them. */
INLINE void write(const struct finish *f, int k, int y, int x, __m512 colour) {
    colour = _mm512_add_ps(colour, _mm512_set1_ps(f->bias[k]));
    colour = _mm512_add_ps(colour, enlarged(f, k, f->first + y, x));
    _mm512_storeu_ps(f->out + k * f->out_plane + (f->first + y) * f->out_line + x, colour);
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
    for (int k = 0; k < 3; k++)
        write(f, k, y, x, sums(colours[k]));
}

/* Of eight vectors the sums of each one's lower and upper half, the first vector's first. */
INLINE __m512 half_sums(const __m512 x[8]) {
    const __m512i order = _mm512_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15);
    __m512 a = quarter_sums(x), b = quarter_sums(x + 4);
    __m512 sum = _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
    return _mm512_permutexvar_ps(order, sum);
}

/* Two pixels of sixteen channels, in two halves that are cheap to get: of bf16 the even channels of
 * both, and the odd ones; of fp32 the first eight, and the others. */
INLINE void split(const void *at, __m512 x[2], const int bf16) {
    if (bf16) {
        __m512i both = _mm512_loadu_si512(at), high = _mm512_set1_epi32((int)0xffff0000);
        x[0] = _mm512_castsi512_ps(_mm512_slli_epi32(both, 16));
        x[1] = _mm512_castsi512_ps(_mm512_and_si512(both, high));
    } else {
        __m512 a = _mm512_loadu_ps(at), b = _mm512_loadu_ps(element(at, LANES, 0));
        x[0] = _mm512_shuffle_f32x4(a, b, 0x44);
        x[1] = _mm512_shuffle_f32x4(a, b, 0xee);
    }
}

/* Sixteen channels' values, as `split` has them. */
INLINE void split_values(const float *at, __m512 x[2], const int bf16) {
    const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 0, 2, 4, 6, 8, 10, 12, 14);
    const __m512i first = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3, 4, 5, 6, 7);
    __m512i order = bf16 ? even : first, next = _mm512_set1_epi32(bf16 ? 1 : 8);
    __m512 values = _mm512_loadu_ps(at);
    x[0] = _mm512_permutexvar_ps(order, values);
    x[1] = _mm512_permutexvar_ps(_mm512_add_epi32(order, next), values);
}

/* The finest level: sixteen channels, pixels behind each other, and no part is kept. */
INLINE void finest(const struct finish *f, const int bf16) {
    __m512 weight[3][4], shift[2], gain = _mm512_set1_ps(f->gain);
    for (int k = 0; k < 3; k++) {
        split_values(f->weight + k * 2 * LANES, weight[k], bf16);
        split_values(f->weight + k * 2 * LANES + LANES, weight[k] + 2, bf16);
    }
    split_values(f->shift, shift, bf16);
    for (int y = 0; y < f->rows; y++)
        for (int x = 0; x < f->columns; x += LANES) {
            ptrdiff_t at = ((ptrdiff_t)y * f->columns + x) * LANES;
            __m512 colours[3][8];
#pragma GCC unroll 8
            for (int p = 0; p < 8; p++) {
                __m512 image[2], part[2];
                split(element(f->image, at + p * 2 * LANES, bf16), image, bf16);
                split(element(f->encoder, at + p * 2 * LANES, bf16), part, bf16);
#pragma GCC unroll 2
                for (int h = 0; h < 2; h++)
                    part[h] = leaky(_mm512_fmadd_ps(part[h], gain, shift[h]));
#pragma GCC unroll 3
                for (int k = 0; k < 3; k++) {
                    __m512 sum = _mm512_mul_ps(image[0], weight[k][0]);
                    sum = _mm512_fmadd_ps(image[1], weight[k][1], sum);
                    sum = _mm512_fmadd_ps(part[0], weight[k][2], sum);
                    colours[k][p] = _mm512_fmadd_ps(part[1], weight[k][3], sum);
                }
            }
#pragma GCC unroll 3
            for (int k = 0; k < 3; k++)
                write(f, k, y, x, half_sums(colours[k]));
        }
}

INLINE void finish(const struct finish *f, const int bf16) {
    if (f->channels == LANES && f->image_pixel == LANES && f->encoder_pixel == LANES && !f->part) {
        finest(f, bf16);
        return;
    }
    for (int y = 0; y < f->rows; y++)
        for (int x = 0; x < f->columns; x += LANES)
            pixels(f, y, x, bf16);
}

void finish_fp32(const struct finish *f) { finish(f, 0); }

void finish_bf16(const struct finish *f) { finish(f, 1); }
