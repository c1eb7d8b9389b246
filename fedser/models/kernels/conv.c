/* The gradient of a convolution's input where that has one channel: what every attack on log-Mels ends with.
 *
 * A kernel K x K, K odd, padding K / 2, stride 1 or 2. PyTorch's own (oneDNN) fills one lane of sixteen there. The order
 * of each sum is oneDNN's, so that the result is the same to the bit; `fused.py` holds both against each other before
 * it uses this. With stride 1 it is one chain, from the last tap to the first, and in each the output channels; with
 * stride 2 the columns of the kernel are added up apart, each from its first row to its last.
 */
#include <stdint.h>
#include <string.h>

#define LANES 16
typedef float vec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
#define INLINE static inline __attribute__((always_inline))

INLINE int64_t block(int64_t stride) { return LANES * (stride == 1 ? 4 : 2); }

/* The floats of a row of scratch: what the last block reads of it is there. */
INLINE int64_t width(int64_t F, int64_t K, int64_t stride) {
    const int64_t outputs = (F + stride - 1) / stride;
    return (outputs + block(stride) - 1) / block(stride) * block(stride) + 2 * K;
}

int64_t scratch(int64_t T, int64_t F, int64_t C, int64_t K, int64_t stride) {
    return (T / stride + 2 * K) * C * width(F, K, stride);
}

/* g's channels apart, so that neighbouring inputs are computed together; K rows and columns of zeros before, more behind */
static void planes(const float *g, int64_t rows, int64_t columns, int64_t C, int64_t K, int64_t w, float *out) {
    for (int64_t t = 0; t < rows; t++)
        for (int64_t c = 0; c < C; c++) {
            float *row = out + ((t + K) * C + c) * w + K;
            const float *from = g + t * columns * C + c;
            for (int64_t f = 0; f < columns; f++) row[f] = from[f * C];
        }
}

INLINE void whole(const float *g, const float *w, int64_t T, int64_t F, int64_t C, int64_t K, int64_t wide, float *dx) {
    enum { N = 4 };
    for (int64_t t = 0; t < T; t++)
        for (int64_t f = 0; f < F; f += N * LANES) {
            vec sum[N] = {0};
            for (int64_t i = K - 1; i >= 0; i--)
                for (int64_t j = K - 1; j >= 0; j--)
                    for (int64_t c = 0; c < C; c++) {
                        const vec *from = (const vec *)(g + ((t + K / 2 - i + K) * C + c) * wide + f + K / 2 - j + K);
                        const float tap = w[(c * K + i) * K + j];
                        for (int k = 0; k < N; k++) sum[k] += from[k] * tap;
                    }
            const int64_t left = F - f < N * LANES ? F - f : N * LANES;
            memcpy(dx + t * F + f, sum, sizeof(float) * (size_t)left);
        }
}

INLINE void halved(const float *g, const float *w, int64_t T, int64_t F, int64_t C, int64_t K, int64_t wide, float *dx) {
    enum { N = 2 };
    for (int64_t t = 0; t < T; t++)
        for (int64_t phase = 0; phase < 2; phase++)
            for (int64_t f = 0; 2 * f + phase < F; f += N * LANES) {
                vec total[N] = {0};
                for (int64_t j = (phase + K / 2) & 1; j < K; j += 2) {
                    vec sum[N] = {0};
                    for (int64_t i = (t + K / 2) & 1; i < K; i += 2)
                        for (int64_t c = 0; c < C; c++) {
                            const int64_t row = (t + K / 2 - i + 2 * K) / 2, column = (phase + K / 2 - j + 2 * K) / 2;
                            const vec *from = (const vec *)(g + (row * C + c) * wide + f + column);
                            const float tap = w[(c * K + i) * K + j];
                            for (int k = 0; k < N; k++) sum[k] += from[k] * tap;
                        }
                    for (int k = 0; k < N; k++) total[k] += sum[k];
                }
                for (int64_t k = 0; k < N * LANES && 2 * (f + k) + phase < F; k++)
                    dx[t * F + 2 * (f + k) + phase] = total[k / LANES][k % LANES];
            }
}

/* g [B, rows, columns, C] (channels last), w [C, K, K], dx [B, T, F], `apart` as many floats as `scratch` says */
void input_gradient(const float *g, const float *w, int64_t B, int64_t T, int64_t F, int64_t rows, int64_t columns,
                    int64_t C, int64_t K, int64_t stride, float *apart, float *dx) {
    const int64_t wide = width(F, K, stride);
    memset(apart, 0, sizeof(float) * (size_t)scratch(T, F, C, K, stride));
    for (int64_t b = 0; b < B; b++) {
        planes(g + b * rows * columns * C, rows, columns, C, K, wide, apart);
        if (stride == 1)
            whole(apart, w, T, F, C, K, wide, dx + b * T * F);
        else
            halved(apart, w, T, F, C, K, wide, dx + b * T * F);
    }
}
