/* What the library offers; `library.py` has the same structures for ctypes. */
#ifndef FACE_RESTORE_KERNELS_H
#define FACE_RESTORE_KERNELS_H

#include <stddef.h>
#include <stdint.h>

/* leaky(scale * conv3x3(style * concat(image, leaky(gain * encoder + shift))) + bias)
 *
 * Planes are channels_last, fp32 or bf16, `columns` wide; `*_pixel` is the distance of pixels in
 * elements. Row 0 of the inputs is row top - 1 of the result's plane; rows and columns outside of
 * what is given count as zero. Channels are multiples of 16, outputs 16 or multiples of 32,
 * rows_out and columns multiples of 4. `block` tiles, a multiple of 16, go through at a time.
 */
struct winograd {
    const void *image, *encoder;
    void *out;
    /* 36 points of panels of 32 outputs (one of 16): (inputs, 32), fp32; for bf16 planes pairs of
     * int16, (inputs / 2, 32, 2), and what one of them is worth, (36, outputs): see winograd.c */
    const void *weight;
    const float *unit;
    const float *style, *shift, *scale, *bias;
    float *scratch; /* 36 * (block * (inputs + outputs) + 32) values */
    ptrdiff_t image_pixel, encoder_pixel, out_pixel;
    int32_t image_channels, encoder_channels, outputs;
    int32_t rows_in, rows_out, columns, top, block;
    float gain;
};

/* leaky(weight picture + bias) for each pixel: `rows` rows of three fp32 planes, `plane` values
 * apart, to channels_last pixels behind each other. Outputs are a multiple of 16. */
struct first {
    const float *picture;
    void *out;
    const float *weight, *bias; /* (3, outputs), (outputs) */
    ptrdiff_t plane;
    int32_t outputs, rows, columns;
};

/* leaky(conv3x3(blur(source), stride 2) + bias), blur by [1, 3, 3, 1] both ways, not divided by 64:
 * tile rows `from` to `to` - 1, of four rows each, to `out`.
 *
 * `source` has `rows` rows of the plane from row `first` on, channels_last, fp32 or bf16; what lies
 * outside counts as zero. `out` has half as many columns, and its pixels lie behind each other.
 * Channels as above, columns a multiple of 8.
 */
struct downsample {
    const void *source;
    void *out;
    /* 5 x 5 matrices in panels, (inputs times phases, 32): both rows and columns even; where the
     * column's point is finite, columns odd; where the row's is, rows odd; where both are, both.
     * For bf16 planes pairs of int16, phases by sixteen inputs, as downsample.c has them, what one
     * of them is worth, (25, outputs), and what inputs are multiplied by, (inputs). */
    const void *weight;
    const float *unit, *strength;
    const float *bias;
    float *scratch; /* 25 * (block * (4 inputs + outputs) + 32) values */
    ptrdiff_t pixel;
    int32_t inputs, outputs, first, rows, columns, from, to, block; /* block: multiple of 16 */
};

/* part = leaky(gain * encoder + shift), written where `part` is not null;
 * out = weight concat(image, part) + bias + the picture below at twice its size.
 *
 * `image`, `encoder` and `part` begin at row `first` of the plane and have `rows` rows, `columns`
 * wide, of `channels` channels (multiples of 16), channels_last. `below` is fp32 RGB, three planes
 * of half the size inside a border of one zero; `out` is fp32 RGB, three whole planes, rows
 * `out_line` apart.
 */
struct finish {
    const void *image, *encoder;
    void *part;
    const float *weight; /* (3, 2 channels) */
    const float *shift, *bias, *below;
    float *out;
    ptrdiff_t image_pixel, encoder_pixel, part_pixel, below_plane, out_plane, out_line;
    int32_t channels, first, rows, columns;
    float gain;
};

/* leaky(scale * blur(transposed_conv3x3(style * source)) + bias), blur by [1, 3, 3, 1] both ways:
 * rows `from` to `to` - 1 of the result, of tile rows `first` to `last` - 1.
 *
 * `source` is a whole plane, channels_last, fp32 or bf16; the result has twice as many columns, the
 * pixels `out_pixel` apart. Channels are multiples of 16 (inputs, in bf16, of 32), outputs 16 or
 * multiples of 32, columns a multiple of 4. Outputs may be some of the convolution's, if not
 * `shared`: whole panels. `raised` holds the last rows of the tile rows before, and keeps those of
 * these for the next call.
 */
struct upsample {
    const void *source;
    void *out;
    /* 25 + 5 + 5 + 1 matrices in panels: both ways, rows only, columns only, neither; for bf16
     * planes of pairs of bf16, (inputs / 2, 32, 2). They are `matrix` floats apart, one for two
     * bf16. Where `shared`, 25 matrices of the points' phases behind each other: upsample.c. */
    const float *weight;
    const float *style, *scale, *bias;
    /* (3, raised_width, outputs), zeros at first, and behind it room for as many values as
     * (3 + 8 * max(1, block / (columns / 4 + 1)), 3 + 8 * min(block, columns / 4 + 1), outputs) */
    float *raised;
    /* 81 * (block * (inputs + outputs) + 32) values; 25 * (block * (inputs + 4 * outputs) + 32)
     * where `shared` */
    float *scratch;
    ptrdiff_t pixel, out_pixel, matrix;
    int32_t inputs, outputs, rows, columns, raised_width; /* 2 columns + 8 */
    int32_t first, last, from, to, block, shared;         /* block: multiple of 8 */
};

/* `upsample`, `winograd` and `finish` for rows `from` to `to` - 1 of a level, both multiples of 8,
 * `step` rows of the up-convolution's tiles at a time.
 *
 * The three are given as for the whole plane; what tells rows, and where the image part lies
 * between them, is filled in. `conv.out` and `finish.part` are the level's plane; where `part` is
 * null, `out` is a buffer of 8 * step + 8 rows. Where `first.picture` is there, the encoder's
 * feature is computed from it. `blurred` and, for that, `feature` have room for 8 * step + 8 rows.
 */
struct band {
    struct upsample up;
    struct winograd conv;
    struct finish finish;
    struct first first;
    void *blurred, *feature;
    int32_t from, to, step;
};

/* `first` and `downsample` for tile rows down.from to down.to - 1 of the encoder's first level, a
 * tile row at a time. The picture is square. What tells rows is filled in; `feature` has room for
 * 12 rows. */
struct encode {
    struct downsample down;
    struct first first;
    void *feature;
};

/* Weights of a convolution for planes in bf16: each matrix is made of some rows of `transform`
 * times the nine taps, its phases, and lies behind the one before, in panels of 32 outputs (one of
 * 16) of pairs.
 *
 * With `unit` the pairs are int16, `unit`, (matrices, outputs), is what one of them is worth, sums
 * over `run` times sixteen inputs (0: over sixteen of each phase) cannot overflow, and the depth is
 * sixteen inputs of each phase, the next sixteen, ..., of two sixteens by four in turn (`pack`)
 * where a run is of more than one. Without it they are bf16, there is one phase, inputs are a
 * multiple of 32, and of 32 the even ones come first.
 */
struct prepare {
    const float *weight;    /* (outputs, inputs, 9); outputs 16 or multiples of 32, inputs of 16 */
    const float *transform; /* (phases of all matrices, 9) */
    const int32_t *phases;  /* of each matrix */
    void *out;
    float *unit;
    float *scratch; /* (phases of all matrices, inputs, 32) */
    int32_t outputs, inputs, matrices, run;
};

uint64_t version(void); /* of the sources it was made from: build.py's `source_version` */
int32_t features(void); /* 1: the processor has what fp32 needs; 2: and what bf16 needs */

void first_fp32(const struct first *f);
void first_bf16(const struct first *f);

void winograd_fp32(const struct winograd *w);
void winograd_bf16(const struct winograd *w);

void upsample_fp32(const struct upsample *u);
void upsample_bf16(const struct upsample *u);

void downsample_fp32(const struct downsample *d);
void downsample_bf16(const struct downsample *d);

void finish_fp32(const struct finish *f);
void finish_bf16(const struct finish *f);

void prepare_bf16(const struct prepare *p);

void encode_fp32(const struct encode *e);
void encode_bf16(const struct encode *e);

void band_fp32(const struct band *b);
void band_bf16(const struct band *b);

#endif
