/* Rows of a level of the synthesis from its up-convolution to RGB, a few at a time, so that what one
 * kernel writes is still in the cache when the next reads it. */
#include <string.h>

#include "kernels.h"
#include "vector.h"

#define TILE_ROW 8 /* rows of the result by a row of the up-convolution's tiles, from 2 above on */
#define TILE 4     /* rows by a row of the convolution's */
#define LEAD 2

/* Rows of a plane in a buffer that moves down the plane: the first and one behind the last. */
struct window {
    char *data;
    ptrdiff_t line; /* bytes of a row */
    int first, end;
};

INLINE char *row_of(const struct window *w, int row) { return w->data + (row - w->first) * w->line; }

/* Drop the rows above `row`. */
static void move_to(struct window *w, int row) {
    if (row <= w->first)
        return;
    memmove(w->data, row_of(w, row), (size_t)((w->end - row) * w->line));
    w->first = row;
}

/* Up-convolve tile rows `first` to `last` - 1 to the end of `blurred`, as far as row `limit`. */
static void raise_rows(const struct band *b, struct window *blurred, int first, int last, int limit,
                       int bf16) {
    struct upsample up = b->up;
    up.first = first, up.last = last;
    up.from = blurred->end;
    up.to = smaller(last * TILE_ROW - LEAD, limit);
    up.out = row_of(blurred, up.from);
    if (bf16)
        upsample_bf16(&up);
    else
        upsample_fp32(&up);
    if (up.to > up.from)
        blurred->end = up.to;
}

/* Compute the encoder's first feature as far as row `end`. */
static void feature_rows(const struct band *b, struct window *feature, int end, int bf16) {
    struct first first = b->first;
    first.picture += (ptrdiff_t)feature->end * first.columns;
    first.rows = end - feature->end;
    first.out = row_of(feature, feature->end);
    if (bf16)
        first_bf16(&first);
    else
        first_fp32(&first);
    feature->end = end;
}

/* Convolve and finish rows `from` to `to` - 1, with a row above and below where there is one. */
static void convolve_rows(const struct band *b, const struct window *blurred, struct window *feature,
                          int from, int to, int bf16) {
    int size = b->conv.columns, above = from > 0, end = smaller(to + 1, size);
    ptrdiff_t value = bf16 ? 2 : 4, line = size * value;
    struct winograd conv = b->conv;
    struct finish finish = b->finish;
    if (b->first.picture) {
        move_to(feature, from - above);
        feature_rows(b, feature, end, bf16);
        conv.encoder = row_of(feature, from - above);
    } else
        conv.encoder = (const char *)conv.encoder + (from - above) * line * conv.encoder_pixel;
    conv.image = row_of(blurred, from - above);
    conv.top = 1 - above, conv.rows_in = end - from + above, conv.rows_out = to - from;
    if (finish.part) { /* a whole plane, and not a buffer */
        conv.out = (char *)conv.out + from * line * conv.out_pixel;
        finish.part = (char *)finish.part + from * line * finish.part_pixel;
    }
    finish.image = conv.out;
    finish.encoder = (const char *)conv.encoder + above * line * conv.encoder_pixel;
    finish.first = from, finish.rows = to - from;
    if (bf16) {
        winograd_bf16(&conv);
        finish_bf16(&finish);
    } else {
        winograd_fp32(&conv);
        finish_fp32(&finish);
    }
}

static void compute(const struct band *b, int bf16) {
    int size = b->conv.columns, top = b->from > 0 ? b->from - 1 : 0;
    ptrdiff_t line = size * (bf16 ? 2 : 4);
    struct window blurred = {b->blurred, line * b->up.out_pixel, top, top};
    struct window feature = {b->feature, line * b->conv.encoder_pixel, top, top};
    int last = b->to / TILE_ROW + 1, limit = smaller(b->to + 1, size), done = b->from;
    /* The tile row above leaves the rows that the first one needs. */
    int tile = b->from > 0 ? b->from / TILE_ROW - 1 : 0;
    for (; tile < last; tile += b->step) {
        raise_rows(b, &blurred, tile, smaller(tile + b->step, last), limit, bf16);
        int ready = blurred.end == limit ? b->to : (blurred.end - 1) / TILE * TILE;
        if (ready <= done)
            continue;
        convolve_rows(b, &blurred, &feature, done, ready, bf16);
        done = ready;
        move_to(&blurred, done - 1);
    }
}

void band_fp32(const struct band *b) { compute(b, 0); }

void band_bf16(const struct band *b) { compute(b, 1); }
