/* out = round(base + sum_k c[k] bases[k]) for bfloat16 and float32: the bytes of the torch
   operations, in one pass. Reading all inputs side by side is what makes it fast: memory answers
   several streams faster than one. A whole model is one call, because a small one is summed faster
   than its tensors are called for. Compiled on first use by native.py. */

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define BLOCK 128 /* sums that stay in registers and the first-level cache */

#if defined(__x86_64__)
#define FOR_EACH_MACHINE __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define FOR_EACH_MACHINE
#endif

typedef float loose_float __attribute__((aligned(1))); /* a mapped file aligns to bytes only */

/* The same elements of a target, its base and its bases (NULL: 0). Laid out as in native.py. */
struct piece {
    void *out;
    const void *base;
    const void *const *bases;
    uint64_t n;
    uint64_t row; /* of the coefficients */
    uint64_t is_float32;
};

FOR_EACH_MACHINE
static void mix_bfloat16(uint16_t *restrict out, const uint16_t *restrict base,
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

FOR_EACH_MACHINE
static void mix_float32(loose_float *restrict out, const loose_float *restrict base,
                        const loose_float *const *bases, const float *c, size_t n_bases, size_t n)
{
    float total[BLOCK];
    for (size_t start = 0; start < n; start += BLOCK) {
        size_t m = n - start < BLOCK ? n - start : BLOCK;
        for (size_t i = 0; i < m; i++)
            total[i] = base[start + i];
        for (size_t k = 0; k < n_bases; k++) {
            if (bases[k] == NULL || c[k] == 0.0f)
                continue;
            const loose_float *restrict basis = bases[k] + start;
            float factor = c[k];
            for (size_t i = 0; i < m; i++)
                total[i] = fmaf(factor, basis[i], total[i]);
        }
        for (size_t i = 0; i < m; i++)
            out[start + i] = total[i];
    }
}

/* Sums pieces until none is left. Threads that call with the same `next` share them: one whose core
   is busy elsewhere takes fewer. `rows` holds `n_bases` coefficients for each row. */
void mix(const struct piece *pieces, size_t n_pieces, const float *rows, size_t n_bases,
         size_t *next)
{
    for (;;) {
        size_t i = __atomic_fetch_add(next, 1, __ATOMIC_RELAXED);
        if (i >= n_pieces)
            return;
        const struct piece *p = &pieces[i];
        const float *c = rows + p->row * n_bases;
        if (p->is_float32)
            mix_float32(p->out, p->base, (const loose_float *const *)p->bases, c, n_bases, p->n);
        else
            mix_bfloat16(p->out, p->base, (const uint16_t *const *)p->bases, c, n_bases, p->n);
    }
}
