/* Batch norm with batch statistics, 2x2 max-pooling where wanted, and ReLU, in one pass forwards and one and a half backwards.
 *
 * Arrays are float32, channels last: y [B, T, F, C], out and at [B, T/2, F/2, C] (pooled) or [B, T, F, C]. C is a
 * multiple of 8. With -DBFLOAT16 y, out and their gradients are bfloat16, read and rounded on the way; all between is float32. The order of every sum and the rounding of every step are those of PyTorch's own kernels on one thread,
 * so that the results are the same to the bit; `fused.py` holds both against each other before it uses this.
 * The compiler's -ffp-contract says whether a product and a sum are rounded once, as PyTorch's were on this machine.
 */
#include <math.h>
#include <stdint.h>

#define LANES 8
typedef float vec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t ivec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
#define INLINE static inline __attribute__((always_inline))
#ifdef BFLOAT16
typedef uint16_t real;
typedef uint16_t half __attribute__((vector_size(2 * LANES), aligned(2), may_alias));
typedef uint32_t uvec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
INLINE vec GET(const real *pointer, int64_t j) {
    return (vec)(__builtin_convertvector(((const half *)pointer)[j], uvec) << 16);
}
INLINE void PUT(real *pointer, int64_t j, vec x) { /* to the nearest, of two to the even one; NaN stays NaN */
    const uvec u = (uvec)x, wrong = (uvec)(x != x);
    const uvec rounded = (u + 0x7fff + ((u >> 16) & 1)) >> 16;
    ((half *)pointer)[j] = __builtin_convertvector((rounded & ~wrong) | ((uvec){0} + 0x7fc0 & wrong), half);
}
#else
typedef float real;
#define GET(pointer, j) (((const vec *)(pointer))[j])
#define PUT(pointer, j, x) (((vec *)(pointer))[j] = (x))
#endif
#define AT(pointer, j) (((const vec *)(pointer))[j])
#define TO(pointer, j) (((vec *)(pointer))[j])
#define KEEP(mask, x) ((vec)((ivec)(x) & (mask)))
#define CHOOSE(mask, x, y) ((vec)(((ivec)(x) & (mask)) | ((ivec)(y) & ~(mask))))

/* Instances for the usual numbers of vectors a pixel, so that these are unrolled and sums stay in registers. */
#define EACH(call) \
    switch (V) { \
    case 1: { enum { V = 1 }; call; break; } \
    case 2: { enum { V = 2 }; call; break; } \
    case 4: { enum { V = 4 }; call; break; } \
    default: call; \
    }

/* sum of y, then of its squared distances from the mean; `total` [C] is scratch */
INLINE void add_up(const real *y, int64_t n, int64_t V, float *mean, float *squares, float *total) {
    const vec zero = {0};
    const int64_t C = V * LANES;
    for (int64_t j = 0; j < V; j++) TO(total, j) = zero;
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < V; j++) TO(total, j) += GET(y + i * C, j);
    for (int64_t c = 0; c < C; c++) mean[c] = (float)(total[c] / (float)n);
    for (int64_t j = 0; j < V; j++) TO(squares, j) = zero;
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < V; j++) {
            vec d = GET(y + i * C, j) - AT(mean, j);
            TO(squares, j) += d * d;
        }
}

INLINE void plain(const real *y, int64_t n, int64_t V, const float *scale, const float *shift, real *out) {
    const vec zero = {0};
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < V; j++) {
            vec z = GET(y + i * V * LANES, j) * AT(scale, j) + AT(shift, j);
            PUT(out + i * V * LANES, j, KEEP(~(ivec)(z <= zero), z));
        }
}

INLINE void pooled(const real *y, int64_t B, int64_t T, int64_t F, int64_t V, const float *scale, const float *shift,
                   real *out, int32_t *at) {
    const vec zero = {0};
    const int64_t C = V * LANES, rows = T / 2, columns = F / 2;
    for (int64_t b = 0; b < B; b++)
        for (int64_t t = 0; t < rows; t++)
            for (int64_t f = 0; f < columns; f++) {
                const real *from = y + ((b * T + 2 * t) * F + 2 * f) * C;
                const int64_t cell = ((b * rows + t) * columns + f) * C;
                for (int64_t j = 0; j < V; j++) {
                    const vec s = AT(scale, j), h = AT(shift, j);
                    vec best = GET(from, j) * s + h;
                    ivec place = {0};
                    for (int32_t k = 1; k < 4; k++) { /* the first of equals, and a NaN before all: as PyTorch has it */
                        vec z = GET(from + ((k >> 1) * F + (k & 1)) * C, j) * s + h;
                        ivec more = (ivec)(z > best) | (ivec)(z != z);
                        best = CHOOSE(more, z, best);
                        place = (place & ~more) | ((ivec){0} + k & more);
                    }
                    ivec dead = (ivec)(best <= zero);
                    PUT(out + cell, j, KEEP(~dead, best));
                    ((ivec *)(at + cell))[j] = place | (dead & 4);
                }
            }
}

INLINE void plain_back(const real *y, const real *g, const real *out, int64_t n, int64_t V, const float *mean,
                       const float *inv, const float *weight, real *dx, float *dot, float *sum, float *slope, float *level) {
    const vec zero = {0};
    const int64_t C = V * LANES;
    for (int64_t j = 0; j < V; j++) TO(dot, j) = TO(sum, j) = zero;
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < V; j++) {
            vec d = KEEP(~(ivec)(GET(out + i * C, j) <= zero), GET(g + i * C, j));
            TO(sum, j) += d;
            TO(dot, j) += (GET(y + i * C, j) - AT(mean, j)) * d;
        }
    for (int64_t c = 0; c < C; c++) {
        slope[c] = dot[c] * inv[c] * inv[c] / (float)n;
        level[c] = sum[c] / (float)n;
    }
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < V; j++) {
            vec d = KEEP(~(ivec)(GET(out + i * C, j) <= zero), GET(g + i * C, j));
            vec x = GET(y + i * C, j) - AT(mean, j);
            PUT(dx + i * C, j, (d - AT(level, j) - x * AT(slope, j)) * AT(inv, j) * AT(weight, j));
        }
}

INLINE void pooled_back(const real *y, const real *g, const int32_t *at, int64_t B, int64_t T, int64_t F, int64_t V,
                        const float *mean, const float *inv, const float *weight, real *dx, float *dot, float *sum,
                        float *slope, float *level) {
    const vec zero = {0};
    const int64_t C = V * LANES, rows = T / 2, columns = F / 2;
    const float n = (float)(B * T * F);
    for (int64_t j = 0; j < V; j++) TO(dot, j) = TO(sum, j) = zero;
    for (int64_t b = 0; b < B; b++)
        for (int64_t t = 0; t < 2 * rows; t++)
            for (int64_t f = 0; f < columns; f++) {
                const real *from = y + ((b * T + t) * F + 2 * f) * C;
                const int64_t cell = ((b * rows + t / 2) * columns + f) * C;
                const int32_t here = 2 * (int32_t)(t & 1);
                for (int64_t j = 0; j < V; j++) {
                    const vec grad = GET(g + cell, j), m = AT(mean, j);
                    const ivec place = ((const ivec *)(at + cell))[j];
                    vec left = KEEP((ivec)(place == here), grad), right = KEEP((ivec)(place == here + 1), grad);
                    vec s = TO(sum, j) + left, d = TO(dot, j) + (GET(from, j) - m) * left;
                    TO(sum, j) = s + right;
                    TO(dot, j) = d + (GET(from + C, j) - m) * right;
                }
            }
    for (int64_t c = 0; c < C; c++) {
        slope[c] = dot[c] * inv[c] * inv[c] / n;
        level[c] = sum[c] / n;
    }
    for (int64_t b = 0; b < B; b++)
        for (int64_t t = 0; t < T; t++)
            for (int64_t f = 0; f < F; f++) {
                const int64_t pixel = ((b * T + t) * F + f) * C;
                const int inside = t < 2 * rows && f < 2 * columns; /* else in an odd row or column, which nobody pooled */
                const int64_t cell = inside ? ((b * rows + t / 2) * columns + f / 2) * C : 0;
                const int32_t here = inside ? 2 * (int32_t)(t & 1) + (int32_t)(f & 1) : -1;
                for (int64_t j = 0; j < V; j++) {
                    vec d = KEEP((ivec)(((const ivec *)(at + cell))[j] == here), GET(g + cell, j));
                    vec x = GET(y + pixel, j) - AT(mean, j);
                    PUT(dx + pixel, j, (d - AT(level, j) - x * AT(slope, j)) * AT(inv, j) * AT(weight, j));
                }
            }
}

/* Statistics, running ones included, and what follows from them: y * scale + shift is the normalised input. */
static void statistics(const real *y, int64_t n, int64_t C, const float *weight, const float *bias, float momentum,
                       float rest, double eps, float *running_mean, float *running_var, float *mean, float *inv,
                       float *scale, float *shift) {
    const int64_t V = C / LANES;
    EACH(add_up(y, n, V, mean, inv, scale))
    for (int64_t c = 0; c < C; c++) {
        const volatile float new_mean = momentum * mean[c], old_mean = rest * running_mean[c]; /* rounded each */
        running_mean[c] = new_mean + old_mean;
        const volatile float old_var = rest * running_var[c];
        running_var[c] = fmaf(momentum, inv[c] / (float)(n - 1), old_var); /* PyTorch's, whatever processor it takes it for */
        inv[c] = (float)(1.0 / sqrt((double)(inv[c] / (float)n) + eps));
        scale[c] = inv[c] * weight[c];
        shift[c] = bias[c] - mean[c] * scale[c];
    }
}

/* kept [4, C]: mean, inverse deviation, scale, shift */
void forward(const real *y, int64_t B, int64_t T, int64_t F, int64_t C, int64_t pool, const float *weight,
             const float *bias, float momentum, float rest, double eps, float *running_mean, float *running_var, float *kept, real *out,
             int32_t *at) {
    const int64_t V = C / LANES;
    float *mean = kept, *inv = kept + C, *scale = kept + 2 * C, *shift = kept + 3 * C;
    statistics(y, B * T * F, C, weight, bias, momentum, rest, eps, running_mean, running_var, mean, inv, scale, shift);
    if (pool) {
        EACH(pooled(y, B, T, F, V, scale, shift, out, at))
    } else {
        EACH(plain(y, B * T * F, V, scale, shift, out))
    }
}

/* grads [4, C]: of the weight (before it is scaled by the inverse deviation), of the bias, and two of scratch */
void backward(const real *y, const real *g, const real *out, const int32_t *at, int64_t B, int64_t T, int64_t F,
              int64_t C, int64_t pool, const float *kept, const float *weight, real *dx, float *grads) {
    const int64_t V = C / LANES;
    const float *mean = kept, *inv = kept + C;
    float *dot = grads, *sum = grads + C, *slope = grads + 2 * C, *level = grads + 3 * C;
    if (pool) {
        EACH(pooled_back(y, g, at, B, T, F, V, mean, inv, weight, dx, dot, sum, slope, level))
    } else {
        EACH(plain_back(y, g, out, B * T * F, V, mean, inv, weight, dx, dot, sum, slope, level))
    }
    for (int64_t c = 0; c < C; c++) dot[c] *= inv[c];
}
