/* out = round(base + sum_k c[k] bases[k]) for bfloat16: the bytes of the torch operations, in one
   pass. Reading all inputs side by side is what makes it fast: memory answers several streams
   faster than one. Compiled on first use by native.py. */

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define BLOCK 128 /* sums that stay in registers and the first-level cache */

#if defined(__x86_64__)
__attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#endif
void mix_bf16(uint16_t *restrict out, const uint16_t *restrict base,
              const uint16_t *const *bases, const float *c, size_t n_bases, size_t n)
{
    float total[BLOCK];
    uint32_t bits;
    for (size_t start = 0; start < n; start += BLOCK) {
        size_t m = n - start < BLOCK ? n - start : BLOCK;
        for (size_t i = 0; i < m; i++) {
            bits = (uint32_t)base[start + i] << 16;
            memcpy(&total[i], &bits, 4);
        }
        for (size_t k = 0; k < n_bases; k++) {
            if (bases[k] == NULL || c[k] == 0.0f)
                continue;
            const uint16_t *restrict basis = bases[k] + start;
            float factor = c[k];
            for (size_t i = 0; i < m; i++) {
                float term;
                bits = (uint32_t)basis[i] << 16;
                memcpy(&term, &bits, 4);
                total[i] = fmaf(factor, term, total[i]);
            }
        }
        for (size_t i = 0; i < m; i++) {
            memcpy(&bits, &total[i], 4);
            uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16; /* to nearest even */
            out[start + i] = (bits & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : rounded; /* NaN */
        }
    }
}
