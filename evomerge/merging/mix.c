/* Merges for bfloat16 and float32: the bytes of the torch operations, in one pass over memory.

       mix      out = round(base + sum_k c[k] bases[k])
       own      out = round(base + c[owner] value)
       select   out = round(base + sum_k c[k] D[k]), D from the deltas by the stages of pipeline.py

   Reading all inputs side by side is what makes it fast: memory answers several streams faster than
   one. A whole model is one call, because a small one is summed faster than its tensors are called
   for. Compiled on first use by native.py. */

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
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
    const void *const *bases; /* own: the values and their owners */
    uint64_t n;
    uint64_t row; /* of the coefficients */
    uint64_t is_float32;
    uint64_t start; /* in the flattened tensor */
};

static inline float from_bfloat16(uint16_t half)
{
    uint32_t bits = (uint32_t)half << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

static inline uint16_t to_bfloat16(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, 4);
    uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16; /* to nearest even */
    return (bits & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : rounded;    /* NaN */
}

FOR_EACH_MACHINE
static void mix_bfloat16(uint16_t *restrict out, const uint16_t *restrict base,
                         const uint16_t *const *bases, const float *c, size_t n_bases, size_t n)
{
    float total[BLOCK];
    for (size_t start = 0; start < n; start += BLOCK) {
        size_t m = n - start < BLOCK ? n - start : BLOCK;
        for (size_t i = 0; i < m; i++)
            total[i] = from_bfloat16(base[start + i]);
        for (size_t k = 0; k < n_bases; k++) {
            if (bases[k] == NULL || c[k] == 0.0f)
                continue;
            const uint16_t *restrict basis = bases[k] + start;
            float factor = c[k];
            for (size_t i = 0; i < m; i++)
                total[i] = fmaf(factor, from_bfloat16(basis[i]), total[i]);
        }
        for (size_t i = 0; i < m; i++)
            out[start + i] = to_bfloat16(total[i]);
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

FOR_EACH_MACHINE
static void own_bfloat16(uint16_t *restrict out, const uint16_t *restrict base,
                         const uint16_t *restrict values, const uint8_t *restrict owners,
                         const float *restrict c, size_t n)
{
    for (size_t i = 0; i < n; i++)
        out[i] = to_bfloat16(fmaf(c[owners[i]], from_bfloat16(values[i]), from_bfloat16(base[i])));
}

FOR_EACH_MACHINE
static void own_float32(loose_float *restrict out, const loose_float *restrict base,
                        const loose_float *restrict values, const uint8_t *restrict owners,
                        const float *restrict c, size_t n)
{
    for (size_t i = 0; i < n; i++)
        out[i] = fmaf(c[owners[i]], values[i], base[i]);
}

/* As `mix`, where at most one basis is not zero in any place. */
void own(const struct piece *pieces, size_t n_pieces, const float *rows, size_t n_bases,
         size_t *next)
{
    float c[256] = {0}; /* of an owner; 0 of nobody */
    for (;;) {
        size_t i = __atomic_fetch_add(next, 1, __ATOMIC_RELAXED);
        if (i >= n_pieces)
            return;
        const struct piece *p = &pieces[i];
        memcpy(c, rows + p->row * n_bases, n_bases * sizeof *c);
        if (p->is_float32)
            own_float32(p->out, p->base, p->bases[0], p->bases[1], c, p->n);
        else
            own_bfloat16(p->out, p->base, p->bases[0], p->bases[1], c, p->n);
    }
}

/* What a delta keeps: `Selection` of pipeline.py, and its stream of random numbers. */
struct selection {
    const float *ranks; /* by magnitude code */
    uint32_t low, high;
    float floor, slope;
    uint32_t key_low, key_high;
};

/* `Selector` of pipeline.py without its selections. */
struct stages {
    uint32_t elects, divides;
    float scale;
    uint32_t is_early;
};

static inline uint32_t scramble(uint32_t bits) /* lowbias32, as in draws.py */
{
    bits ^= bits >> 16;
    bits *= 0x21f0aaad;
    bits ^= bits >> 15;
    bits *= 0x735a2d97;
    return bits ^ bits >> 15;
}

static inline uint32_t code_of(float x) /* of the magnitude, rounded to bfloat16 */
{
    return to_bfloat16(x) & 0x7fff;
}

/* v = what the selection keeps of m numbers x, the first of which has this place. */
FOR_EACH_MACHINE
static void keep(float *restrict v, const struct selection *s, uint64_t place, size_t m)
{
    uint32_t low = s->low, high = s->high, key_low = s->key_low, key_high = s->key_high;
    float floor = s->floor, slope = s->slope;
    if (floor == 1.0f && slope == 0.0f) {
        for (size_t i = 0; i < m; i++) {
            uint32_t code = code_of(v[i]);
            v[i] = (code >= low) & (code < high) ? v[i] : 0.0f;
        }
        return;
    }
    float p[BLOCK];
    if (slope == 0.0f)
        for (size_t i = 0; i < m; i++)
            p[i] = floor;
    else
        for (size_t i = 0; i < m; i++)
            p[i] = s->ranks[code_of(v[i])] * slope + floor;
    key_high ^= (uint32_t)(place >> 32); /* blocks start at multiples of their length */
    for (size_t i = 0; i < m; i++) {
        uint32_t code = code_of(v[i]), bits = scramble(((uint32_t)place + (uint32_t)i) ^ key_low);
        bits = scramble(bits ^ key_high);
        float u = (float)(int32_t)(bits >> 8) * 0x1p-24f, rescaled = v[i] / p[i];
        v[i] = (code >= low) & (code < high) & (u < p[i]) ? rescaled : 0.0f;
    }
}

/* Turns the n_deltas rows of `v`, BLOCK apart, from what deltas keep into bases. */
FOR_EACH_MACHINE
static void elect(float *restrict v, const struct stages *stages, const float *w,
                  const void *const *deltas, size_t n_deltas, size_t m)
{
    float votes[BLOCK] = {0}, divisor[BLOCK] = {0};
    for (size_t k = 0; k < n_deltas; k++) {
        if (deltas[k] == NULL)
            continue;
        for (size_t i = 0; i < m; i++)
            votes[i] = fmaf(w[k], v[k * BLOCK + i], votes[i]);
    }
    for (size_t i = 0; i < m; i++)
        votes[i] = votes[i] >= 0.0f ? 1.0f : -1.0f;
    for (size_t k = 0; k < n_deltas; k++) {
        if (deltas[k] == NULL)
            continue;
        float side = w[k] > 0.0f ? 1.0f : w[k] < 0.0f ? -1.0f : 0.0f, weight = fabsf(w[k]);
        for (size_t i = 0; i < m; i++) {
            int agrees = v[k * BLOCK + i] * votes[i] * side > 0.0f;
            divisor[i] += agrees ? weight : 0.0f;
        }
    }
    for (size_t k = 0; k < n_deltas; k++) {
        if (deltas[k] == NULL)
            continue;
        float side = w[k] > 0.0f ? 1.0f : w[k] < 0.0f ? -1.0f : 0.0f;
        for (size_t i = 0; i < m; i++) {
            float x = v[k * BLOCK + i];
            float basis = stages->divides ? x / divisor[i] : x;
            v[k * BLOCK + i] = x * votes[i] * side > 0.0f ? basis : 0.0f;
        }
    }
}

FOR_EACH_MACHINE
static void select_piece(const struct piece *p, const struct stages *stages,
                         const struct selection *selections, const float *c, const float *ones,
                         size_t n_deltas, float *restrict v)
{
    float total[BLOCK];
    for (size_t start = 0; start < p->n; start += BLOCK) {
        size_t m = p->n - start < BLOCK ? p->n - start : BLOCK;
        for (size_t k = 0; k < n_deltas; k++) {
            if (p->bases[k] == NULL)
                continue;
            float *restrict x = v + k * BLOCK;
            if (p->is_float32)
                memcpy(x, (const char *)p->bases[k] + 4 * start, 4 * m);
            else
                for (size_t i = 0; i < m; i++)
                    x[i] = from_bfloat16(((const uint16_t *)p->bases[k])[start + i]);
            keep(x, &selections[k], p->start + start, m);
        }
        if (stages->elects)
            elect(v, stages, stages->is_early ? c : ones, p->bases, n_deltas, m);
        if (p->is_float32)
            memcpy(total, (const char *)p->base + 4 * start, 4 * m);
        else
            for (size_t i = 0; i < m; i++)
                total[i] = from_bfloat16(((const uint16_t *)p->base)[start + i]);
        for (size_t k = 0; k < n_deltas; k++) {
            if (p->bases[k] == NULL || c[k] == 0.0f)
                continue;
            for (size_t i = 0; i < m; i++)
                total[i] = fmaf(c[k], v[k * BLOCK + i] * stages->scale, total[i]);
        }
        if (p->is_float32)
            memcpy((char *)p->out + 4 * start, total, 4 * m);
        else
            for (size_t i = 0; i < m; i++)
                ((uint16_t *)p->out)[start + i] = to_bfloat16(total[i]);
    }
}

/* As `mix`, of bases that are made on the way. Of `selections` there are `n_deltas` and of `stages`
   one for each row; rows have one coefficient more than there are deltas. Returns 0 if there is no
   memory for a block of each delta. */
int select_and_mix(const struct piece *pieces, size_t n_pieces, const float *rows, size_t n_deltas,
                   size_t *next, const struct selection *selections, const struct stages *stages)
{
    float *v = malloc((n_deltas * BLOCK + n_deltas) * sizeof *v);
    if (v == NULL)
        return 0;
    float *ones = v + n_deltas * BLOCK;
    for (size_t k = 0; k < n_deltas; k++)
        ones[k] = 1.0f;
    for (;;) {
        size_t i = __atomic_fetch_add(next, 1, __ATOMIC_RELAXED);
        if (i >= n_pieces)
            break;
        const struct piece *p = &pieces[i];
        select_piece(p, &stages[p->row], selections + p->row * n_deltas,
                     rows + p->row * (n_deltas + 1), ones, n_deltas, v);
    }
    free(v);
    return 1;
}
