/* Winograd's minimal filtering F(4, 2): four results of two taps by five products.
 *
 * The points are +-3/8, +-5/4 and infinity, which lose least of those tried.
 */
#ifndef FACE_RESTORE_FILTER2_H
#define FACE_RESTORE_FILTER2_H

#include "vector.h"

static const float A = 0.375f, B = 1.25f, A2 = 0.140625f, B2 = 1.5625f;

/* B^T d for the finite points: four values d, each of sixteen channels. */
INLINE void into_finite(const __m512 d[4], __m512 v[4]) {
    const __m512 a = _mm512_set1_ps(A), b = _mm512_set1_ps(B), a2 = _mm512_set1_ps(A2),
                 b2 = _mm512_set1_ps(B2);
    __m512 even = _mm512_fnmadd_ps(b2, d[0], d[2]), odd = _mm512_fnmadd_ps(b2, d[1], d[3]);
    v[0] = _mm512_fmadd_ps(a, even, odd);
    v[1] = _mm512_fnmadd_ps(a, even, odd);
    even = _mm512_fnmadd_ps(a2, d[0], d[2]);
    odd = _mm512_fnmadd_ps(a2, d[1], d[3]);
    v[2] = _mm512_fmadd_ps(b, even, odd);
    v[3] = _mm512_fnmadd_ps(b, even, odd);
}

/* B^T d for five values d. */
INLINE void into(const __m512 d[5], __m512 v[5]) {
    into_finite(d, v);
    v[4] = _mm512_fnmadd_ps(_mm512_set1_ps(A2 + B2), d[2],
                            _mm512_fmadd_ps(_mm512_set1_ps(A2 * B2), d[0], d[4]));
}

/* A^T m for five values m. */
INLINE void out_of(const __m512 m[5], __m512 y[4]) {
    const __m512 a = _mm512_set1_ps(A), b = _mm512_set1_ps(B), a2 = _mm512_set1_ps(A2),
                 b2 = _mm512_set1_ps(B2);
    __m512 inner = _mm512_add_ps(m[0], m[1]), outer = _mm512_add_ps(m[2], m[3]);
    y[0] = _mm512_add_ps(inner, outer);
    y[2] = _mm512_fmadd_ps(b2, outer, _mm512_mul_ps(a2, inner));
    inner = _mm512_mul_ps(a, _mm512_sub_ps(m[0], m[1]));
    outer = _mm512_mul_ps(b, _mm512_sub_ps(m[2], m[3]));
    y[1] = _mm512_add_ps(inner, outer);
    y[3] = _mm512_fmadd_ps(b2, outer, _mm512_fmadd_ps(a2, inner, m[4]));
}

#endif
