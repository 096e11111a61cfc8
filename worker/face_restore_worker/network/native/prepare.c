/* Weights for planes in bf16, transformed, rounded and laid out as the kernels take them. */
#include "kernels.h"
#include "vector.h"

#define TAPS 9
#define WIDE (2 * LANES)

/* Of a sum's weights' absolute values: what they are multiplied with is below 2^14 (vector.h), so
 * sums stay below 2^31; less what rounding adds. */
#define LARGEST_SUM (131072.0f - 64.0f)

/* Transform a panel of `wide` outputs: row r of the transform of input i to v[(r * inputs + i) *
 * WIDE]. */
static void transform(const struct prepare *p, const float *weight, int rows, int wide) {
    ptrdiff_t output = (ptrdiff_t)p->inputs * TAPS;
    const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512i at = _mm512_mullo_epi32(lane, _mm512_set1_epi32((int)output));
    for (int o = 0; o < wide; o += LANES)
        for (int i = 0; i < p->inputs; i++) {
            __m512 taps[TAPS];
            for (int k = 0; k < TAPS; k++)
                taps[k] = _mm512_i32gather_ps(at, weight + o * output + i * TAPS + k, 4);
            for (int r = 0; r < rows; r++) {
                __m512 sum = _mm512_setzero_ps();
#pragma GCC unroll 9
                for (int k = 0; k < TAPS; k++)
                    sum = _mm512_fmadd_ps(taps[k], _mm512_set1_ps(p->transform[r * TAPS + k]), sum);
                _mm512_storeu_ps(p->scratch + ((ptrdiff_t)r * p->inputs + i) * WIDE + o, sum);
            }
        }
}

/* Sixteen inputs of a matrix: `step` of its depth, where phases take turns. */
INLINE const float *inputs_of(const struct prepare *p, const float *matrix, int phases, int step) {
    return matrix + ((ptrdiff_t)(step % phases) * p->inputs + step / phases * LANES) * WIDE;
}

/* What a weight in int16 is worth: as little as sums over `run` steps and int16 itself allow. */
static __m512 unit_of(const struct prepare *p, const float *matrix, int phases, int run) {
    __m512 most = _mm512_setzero_ps(), largest = _mm512_setzero_ps();
    for (int step = 0; step < phases * p->inputs / LANES; step += run) {
        __m512 sum = _mm512_setzero_ps();
        for (int s = step; s < step + run; s++)
            for (int i = 0; i < LANES; i++) {
                __m512 size =
                    _mm512_abs_ps(_mm512_loadu_ps(inputs_of(p, matrix, phases, s) + i * WIDE));
                sum = _mm512_add_ps(sum, size);
                largest = _mm512_max_ps(largest, size);
            }
        most = _mm512_max_ps(most, sum);
    }
    __m512 unit = _mm512_max_ps(_mm512_div_ps(most, _mm512_set1_ps(LARGEST_SUM)),
                                _mm512_div_ps(largest, _mm512_set1_ps(32767.0f)));
    return _mm512_max_ps(unit, _mm512_set1_ps(1e-37f)); /* outputs without weights */
}

INLINE void store_pair(int32_t *to, __m512i first, __m512i second) {
    __m512i low = _mm512_and_si512(first, _mm512_set1_epi32(0xffff));
    _mm512_storeu_si512(to, _mm512_or_si512(low, _mm512_slli_epi32(second, 16)));
}

/* Pairs of int16: of two steps by four inputs in turn (`pack`), where a run has more than one. */
static void integers(const struct prepare *p, const float *matrix, int phases, int run, int wide,
                     __m512 unit, int32_t *to) {
    const __m512 one = _mm512_set1_ps(1.0f), times = _mm512_div_ps(one, unit);
    const int together = run > 1 ? 2 : 1;
    for (int step = 0; step < phases * p->inputs / LANES; step += together)
        for (int pair = 0; pair < together * LANES / 2; pair++, to += wide) {
            int second = together == 2 && pair % 4 >= 2;
            int input = together == 2 ? pair / 4 * 4 + pair % 2 * 2 : 2 * pair;
            const float *from = inputs_of(p, matrix, phases, step + second) + input * WIDE;
            __m512 a = _mm512_loadu_ps(from), b = _mm512_loadu_ps(from + WIDE);
            store_pair(to, _mm512_cvtps_epi32(_mm512_mul_ps(a, times)),
                       _mm512_cvtps_epi32(_mm512_mul_ps(b, times)));
        }
}

/* Pairs of bf16: of 32 inputs the even ones, then the odd ones (`load_even_odd`). */
static void halves(const struct prepare *p, const float *matrix, int wide, int32_t *to) {
    for (int i = 0; i < p->inputs; i += 2, to += wide) {
        int half = i % WIDE / LANES;
        const float *from = matrix + (ptrdiff_t)(i - i % WIDE + 2 * (i % LANES) + half) * WIDE;
        store_pair(to, _mm512_cvtepu16_epi32(narrow(_mm512_loadu_ps(from))),
                   _mm512_cvtepu16_epi32(narrow(_mm512_loadu_ps(from + 2 * WIDE))));
    }
}

void prepare_bf16(const struct prepare *p) {
    int wide = smaller(p->outputs, WIDE), rows = 0;
    for (int m = 0; m < p->matrices; m++)
        rows += p->phases[m];
    for (int panel = 0; panel < p->outputs / wide; panel++) {
        int first = panel * wide;
        const float *matrix = p->scratch;
        int32_t *out = p->out;
        transform(p, p->weight + (ptrdiff_t)first * p->inputs * TAPS, rows, wide);
        for (int m = 0; m < p->matrices; m++) {
            int phases = p->phases[m], run = p->run ? p->run : phases;
            ptrdiff_t depth = (ptrdiff_t)phases * p->inputs / 2; /* in pairs */
            for (int o = 0; o < wide; o += LANES) {
                int32_t *to = out + depth * first + o;
                if (p->unit) {
                    __m512 unit = unit_of(p, matrix + o, phases, run);
                    _mm512_storeu_ps(p->unit + (ptrdiff_t)m * p->outputs + first + o, unit);
                    integers(p, matrix + o, phases, run, wide, unit, to);
                } else
                    halves(p, matrix + o, wide, to);
            }
            matrix += (ptrdiff_t)phases * p->inputs * WIDE;
            out += depth * p->outputs;
        }
    }
}
