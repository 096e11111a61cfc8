/* The encoder's first feature: a 1x1 convolution of the picture, bias and leaky ReLU. */
#include "kernels.h"
#include "vector.h"

INLINE void feature(const struct first *f, const int bf16) {
    ptrdiff_t pixels = (ptrdiff_t)f->rows * f->columns, outputs = f->outputs;
    for (int o = 0; o < outputs; o += LANES) {
        const __m512 bias = _mm512_loadu_ps(f->bias + o);
        __m512 weight[3];
        for (int k = 0; k < 3; k++)
            weight[k] = _mm512_loadu_ps(f->weight + k * outputs + o);
#pragma GCC unroll 4
        for (ptrdiff_t p = 0; p < pixels; p++) {
            __m512 sum = bias;
#pragma GCC unroll 3
            for (int k = 0; k < 3; k++)
                sum = _mm512_fmadd_ps(_mm512_set1_ps(f->picture[k * f->plane + p]), weight[k], sum);
            store((void *)element(f->out, p * outputs + o, bf16), leaky(sum), bf16);
        }
    }
}

void first_fp32(const struct first *f) { feature(f, 0); }

void first_bf16(const struct first *f) { feature(f, 1); }
