/* Several kernels for a few rows at a time, so that what one writes is still in the cache when the
 * next reads it: a level of the synthesis from its up-convolution to RGB, the encoder's first
 * level. */
#include <string.h>

#include "kernels.h"
#include "vector.h"

#define TILE_ROW                                                                                   \
    8          /* rows of the result by a row of the up-convolution's tiles, from 2 above on       \
                */
#define TILE 4 /* rows by a row of the convolution's */
#define LEAD 2

/* Rows of a plane in a buffer that moves down the plane: the first and one behind the last. */
struct window {
    char *data;
    ptrdiff_t line; /* bytes of a row */
    int first, end;
};

INLINE char *row_of(const struct window *w, int row) {
    return w->data + (row - w->first) * w->line;
}

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
static void feature_rows(struct first first, struct window *feature, int end, int bf16) {
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
static void convolve_rows(const struct band *b, const struct window *blurred,
                          struct window *feature, int from, int to, int bf16) {
    int size = b->conv.columns, above = from > 0, end = smaller(to + 1, size);
    ptrdiff_t value = bf16 ? 2 : 4, line = size * value;
    struct winograd conv = b->conv;
    struct finish finish = b->finish;
    if (b->first.picture) {
        move_to(feature, from - above);
        feature_rows(b->first, feature, end, bf16);
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

static void synthesise(const struct band *b, int bf16) {
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

void band_fp32(const struct band *b) { synthesise(b, 0); }

void band_bf16(const struct band *b) { synthesise(b, 1); }

static void encode(const struct encode *e, int bf16) {
    int columns = e->first.columns;
    ptrdiff_t value = bf16 ? 2 : 4;
    int first = 2 * TILE * e->down.from - LEAD, top = first > 0 ? first : 0;
    struct window feature = {e->feature, columns * e->first.outputs * value, top, top};
    struct downsample down = e->down;
    for (down.from = e->down.from; down.from < e->down.to; down.from++) {
        down.to = down.from + 1;
        move_to(&feature, 2 * TILE * down.from - LEAD);
        feature_rows(e->first, &feature, smaller(2 * TILE * down.to + LEAD, columns), bf16);
        down.source = feature.data;
        down.first = feature.first, down.rows = feature.end - feature.first;
        if (bf16)
            downsample_bf16(&down);
        else
            downsample_fp32(&down);
        down.out = (char *)down.out + TILE * (columns / 2) * down.outputs * value;
    }
}

void encode_fp32(const struct encode *e) { encode(e, 0); }

void encode_bf16(const struct encode *e) { encode(e, 1); }
