/* A running weighted sum of vectors: sum += weights[0] * vectors[0], then weights[1] * vectors[1], …
 *
 * Piece by piece, so that the sum is read and written once however many vectors there are. Each product is rounded
 * before it is added, as NumPy has it: compiled without contraction.
 */
#include <stdint.h>

#define PIECE 2048 /* floats, 8 KiB: they stay in the first cache */

void add(float *restrict sum, const float *const *vectors, const float *weights, int64_t count, int64_t size) {
    for (int64_t start = 0; start < size; start += PIECE) {
        const int64_t end = start + PIECE < size ? start + PIECE : size;
        for (int64_t k = 0; k < count; k++) {
            const float *vector = vectors[k], weight = weights[k];
            for (int64_t i = start; i < end; i++) sum[i] += weight * vector[i];
        }
    }
}
