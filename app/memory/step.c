/* One token through a decoder of the Llama shape, weights in 8 or 4 bits, activations in float.

A single token multiplies every weight once, so its time is the time of reading the weights and the
cache. Here they are read packed, by all threads, in one call per token. Loops are written for the
compiler to vectorise with whatever the processor has. app/memory/native.py has the same structs.

The work is a sequence of phases, each cut into pieces that threads claim one by one. A phase is over
when its pieces are done, not when every thread has come: one that the system has put to sleep holds
nobody up, and finds itself behind when it wakes. */

#include <math.h>
#include <omp.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <string.h>
#ifdef __AVX2__
#include <immintrin.h>
#endif

typedef float f8 __attribute__((vector_size(32), aligned(4)));
typedef int32_t i8 __attribute__((vector_size(32), aligned(4)));
typedef int8_t s8 __attribute__((vector_size(8), aligned(1)));
typedef uint8_t u8 __attribute__((vector_size(8), aligned(1)));
typedef uint16_t h8 __attribute__((vector_size(16), aligned(2)));

enum { GROUP = 32, BLOCK = 128, FOUR = 4 };

/* bits 8: int8 (rows, cols), one scale a row, cols a multiple of 8. bits 4: nibbles of groups of 32,
byte j holds elements j and j + 16; scales a pair of bfloat16 a group: step above, lowest below. */
typedef struct {
    int64_t rows, cols, bits;
    const void *values, *scales;
    const float *bias;
} Matrix;

typedef struct {
    Matrix qkv, out, gate_up, down;
    const float *norm_in, *norm_mid, *norm_q, *norm_k;
    int64_t rotary;
} Layer;

typedef struct {
    int64_t layers, hidden, heads, kv_heads, dim, inner;
    float eps, scaling;
    const Layer *layer;
    const float *norm;
    Matrix head;
} Model;

/* keys, values: bfloat16 (layers, kv_heads, capacity, dim); bias: (layers, kv_heads, biased). */
typedef struct {
    uint16_t *keys, *values;
    int64_t capacity;
    const float *bias;
    int64_t biased;
} Cache;

static inline float bf16(uint32_t high) {
    union { uint32_t u; float f; } x = {high << 16};
    return x.f;
}

static inline uint16_t to_bf16(float f) {
    union { float f; uint32_t u; } x = {f};
    return (x.u + 0x7fff + ((x.u >> 16) & 1)) >> 16;
}

static inline f8 wide(const uint16_t *p) {
    union { i8 i; f8 f; } x = {__builtin_convertvector(*(const h8 *)p, i8) << 16};
    return x.f;
}

/* Eight bytes, each made wide. GCC 12 takes the general form apart into single elements. */
#ifdef __AVX2__
static inline i8 unsigned8(const uint8_t *p) {
    return (i8)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)p));
}
static inline f8 signed8(const int8_t *p) {
    i8 x = (i8)_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)p));
    return __builtin_convertvector(x, f8);
}
#else
static inline i8 unsigned8(const uint8_t *p) { return __builtin_convertvector(*(const u8 *)p, i8); }
static inline f8 signed8(const int8_t *p) { return __builtin_convertvector(*(const s8 *)p, f8); }
#endif

static inline float sum(f8 v) {
    return ((v[0] + v[4]) + (v[1] + v[5])) + ((v[2] + v[6]) + (v[3] + v[7]));
}

static float row8(const int8_t *w, const float *x, int64_t cols) {
    f8 a = {0}, b = {0};
    int64_t k = 0;
    for (; k + 16 <= cols; k += 16) {
        a += signed8(w + k) * *(const f8 *)(x + k);
        b += signed8(w + k + 8) * *(const f8 *)(x + k + 8);
    }
    if (k < cols) a += signed8(w + k) * *(const f8 *)(x + k);
    return sum(a + b);
}

static float row4(const uint8_t *w, const uint32_t *scales, const float *x, const float *sums,
                  int64_t groups) {
    f8 total = {0};
    float lowest = 0;
    for (int64_t g = 0; g < groups; g++, w += 16, x += GROUP) {
        i8 a = unsigned8(w), b = unsigned8(w + 8);
        f8 part = __builtin_convertvector(a & 15, f8) * *(const f8 *)x;
        f8 more = __builtin_convertvector(b & 15, f8) * *(const f8 *)(x + 8);
        part += __builtin_convertvector(a >> 4, f8) * *(const f8 *)(x + 16);
        more += __builtin_convertvector(b >> 4, f8) * *(const f8 *)(x + 24);
        total += (part + more) * bf16(scales[g] >> 16);
        lowest += bf16(scales[g] & 0xffff) * sums[g];
    }
    return sum(total) + lowest;
}

typedef struct {
    atomic_int claimed, done;
} Phase;

enum { PHASES_A_LAYER = 6, SPINS = 2000 };

/* The next piece of a phase, or -1 when none is left. */
static inline int64_t claim(Phase *phase, int64_t pieces) {
    int64_t piece = atomic_fetch_add(&phase->claimed, 1);
    return piece < pieces ? piece : -1;
}

static inline void finished(Phase *phase) { atomic_fetch_add(&phase->done, 1); }

static inline void await(Phase *phase, int64_t pieces) {
    for (int spins = 0; atomic_load(&phase->done) < pieces; spins++)
        if (spins > SPINS) sched_yield();
}

/* An input of a product, and for 4 bits the sum of each of its groups. */
typedef struct {
    const float *x;
    float *sums;
} Input;

static void sum_groups(Input in, int64_t cols) {
    for (int64_t g = 0; g < cols / GROUP; g++) {
        in.sums[g] = 0;
        for (int j = 0; j < GROUP; j++) in.sums[g] += in.x[g * GROUP + j];
    }
}

static inline float dot(const Matrix *m, int64_t row, Input in) {
    int64_t groups = m->cols / GROUP;
    float sum;
    if (m->bits == 4)
        sum = row4((const uint8_t *)m->values + row * m->cols / 2,
                   (const uint32_t *)m->scales + row * groups, in.x, in.sums, groups);
    else
        sum = row8((const int8_t *)m->values + row * m->cols, in.x, m->cols) *
              ((const float *)m->scales)[row];
    return m->bias ? sum + m->bias[row] : sum;
}

static void normalise(const float *x, const float *weight, float *y, int64_t n, float eps) {
    float squares = 0;
    for (int64_t i = 0; i < n; i++) squares += x[i] * x[i];
    float scale = 1.0f / sqrtf(squares / n + eps);
    for (int64_t i = 0; i < n; i++) y[i] = x[i] * scale * weight[i];
}

/* What a product does with its rows. */
typedef enum { SET, ADD, GATE } Use;

/* One phase: y = m x, or y += m x, or y = silu(upper half) * lower half. x is normalised first if
there is a norm. Only who has claimed a piece reads x: it stays as it is until that piece is done. */
static void multiply(Phase *phase, const Matrix *m, const float *x, const float *norm, float eps,
                     float *y, Use use) {
    float normed[norm ? m->cols : 1], sums[m->cols / GROUP + 1];
    Input in = {norm ? normed : x, sums};
    int64_t rows = use == GATE ? m->rows / 2 : m->rows;
    int64_t size = rows / (4 * omp_get_num_threads()) + 1, pieces = (rows + size - 1) / size;
    int ready = 0;
    for (int64_t piece; (piece = claim(phase, pieces)) >= 0; finished(phase)) {
        if (!ready) {
            if (norm) normalise(x, norm, normed, m->cols, eps);
            if (m->bits == 4) sum_groups(in, m->cols);
            ready = 1;
        }
        int64_t end = (piece + 1) * size < rows ? (piece + 1) * size : rows;
        for (int64_t r = piece * size; r < end; r++) {
            float sum = dot(m, r, in);
            if (use == GATE) sum = sum / (1.0f + expf(-sum)) * dot(m, rows + r, in);
            y[r] = use == ADD ? y[r] + sum : sum;
        }
    }
    await(phase, pieces);
}

static void turn(const float *head, const float *cos, const float *sin, int64_t dim, float *out) {
    for (int64_t i = 0, half = dim / 2; i < half; i++) {
        float a = head[i], b = head[i + half];
        out[i] = a * cos[i] - b * sin[i];
        out[i + half] = b * cos[i + half] + a * sin[i + half];
    }
}

/* A head as attention takes it: normalised and turned to its position where the layer does so. */
static void prepare(const float *head, const float *norm, int64_t rotary, float eps,
                    const float *cos, const float *sin, int64_t dim, float *out) {
    float normed[dim];
    memcpy(normed, head, sizeof normed);
    if (norm) normalise(head, norm, normed, dim, eps);
    if (rotary)
        turn(normed, cos, sin, dim, out);
    else
        memcpy(out, normed, sizeof normed);
}

/* e to the x, for x at most 0; 0 below -87. Cephes' polynomial, relative error below 2e-7. */
static inline f8 exponential(f8 x) {
    i8 n = __builtin_convertvector(x * 1.44269504f - 0.5f, i8);
    f8 whole = __builtin_convertvector(n, f8);
    f8 r = (x - whole * 0.693359375f) + whole * 2.12194440e-4f;
    f8 p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    union { i8 i; f8 f; } power = {(n + 127) << 23}, found;
    found.f = (p * r * r + r + 1.0f) * power.f;
    found.i &= x > -87.0f;
    return found.f;
}

/* One block of a key-value head's entries, read by `count` of its query heads in softmax that is
finished later. q: (count, dim), scaled. part: (count, dim + 2) with a stride between heads: what the
heads read, unnormalised, then the highest score and the sum of weights. */
static inline __attribute__((always_inline)) void read_block(
    const float *q, int count, const uint16_t *keys, const uint16_t *values, const float *bias,
    int64_t biased, int64_t entries, int64_t dim, float *part, int64_t stride) {
    float weights[FOUR][BLOCK] __attribute__((aligned(32)));
    float most[FOUR] = {-INFINITY, -INFINITY, -INFINITY, -INFINITY}, mass[FOUR] = {0};
    for (int64_t e = 0; e < entries; e++) {
        f8 dots[FOUR] = {{0}};
        for (int64_t d = 0; d < dim; d += 8) {
            f8 key = wide(keys + e * dim + d);
            for (int g = 0; g < count; g++) dots[g] += key * *(const f8 *)(q + g * dim + d);
        }
        for (int g = 0; g < count; g++) {
            float score = sum(dots[g]) + (e < biased ? bias[e] : 0);
            weights[g][e] = score;
            if (score > most[g]) most[g] = score;
        }
    }
    for (int g = 0; g < count; g++) {
        for (int64_t e = entries; e % 8; e++) weights[g][e] = -INFINITY;
        for (int64_t e = 0; e < entries; e += 8) {
            f8 *eight = (f8 *)(weights[g] + e);
            *eight = exponential(*eight - most[g]);
        }
        for (int64_t e = 0; e < entries; e++) mass[g] += weights[g][e];
    }
    for (int64_t d = 0; d < dim; d += 8) {
        /* Even and odd entries apart, so that a sum does not wait for the one before it. */
        f8 even[FOUR] = {{0}}, odd[FOUR] = {{0}};
        for (int64_t e = 0; e < entries; e += 2) {
            f8 value = wide(values + e * dim + d);
            f8 next = e + 1 < entries ? wide(values + (e + 1) * dim + d) : (f8){0};
            for (int g = 0; g < count; g++) {
                even[g] += value * weights[g][e];
                odd[g] += next * weights[g][e + 1];
            }
        }
        for (int g = 0; g < count; g++) *(f8 *)(part + g * stride + d) = even[g] + odd[g];
    }
    for (int g = 0; g < count; g++) {
        part[g * stride + dim] = most[g];
        part[g * stride + dim + 1] = mass[g];
    }
}

/* The same for any number of query heads, four at a time: each entry is made wide once for four. */
static void read_group(const float *q, int64_t count, const uint16_t *keys, const uint16_t *values,
                       const float *bias, int64_t biased, int64_t entries, int64_t dim, float *part,
                       int64_t stride) {
    for (; count > 0; count -= FOUR, q += FOUR * dim, part += FOUR * stride) {
#define READ(n) read_block(q, n, keys, values, bias, biased, entries, dim, part, stride)
        switch (count) {
            case 1: READ(1); break;
            case 2: READ(2); break;
            case 3: READ(3); break;
            default: READ(FOUR);
        }
#undef READ
    }
}

/* One phase: queries, keys and values (heads + 2 kv_heads, dim) -> parts (heads, blocks, dim + 2).
A piece is a block of one key-value head's entries, read by all its query heads. The last block's
piece writes the new token's key and value to the cache. */
static void attend(Phase *phase, const Model *m, const Cache *c, int64_t layer, const float *cos,
                   const float *sin, int64_t entries, const float *qkv, float *parts) {
    const Layer *l = m->layer + layer;
    int64_t dim = m->dim, group = m->heads / m->kv_heads, blocks = entries / BLOCK + 1;
    float queries[group * dim], key[dim];
    for (int64_t i; (i = claim(phase, m->kv_heads * blocks)) >= 0; finished(phase)) {
        int64_t h = i / blocks, block = i % blocks, first = block * BLOCK;
        int64_t at = (layer * m->kv_heads + h) * c->capacity * dim;
        uint16_t *keys = c->keys + at, *values = c->values + at;
        if (block == blocks - 1) {
            const float *k = qkv + (m->heads + h) * dim, *v = k + m->kv_heads * dim;
            prepare(k, l->norm_k, l->rotary, m->eps, cos, sin, dim, key);
            for (int64_t d = 0; d < dim; d++) {
                keys[entries * dim + d] = to_bf16(key[d]);
                values[entries * dim + d] = to_bf16(v[d]);
            }
        }
        for (int64_t g = 0; g < group; g++)
            prepare(qkv + (h * group + g) * dim, l->norm_q, l->rotary, m->eps, cos, sin, dim,
                    queries + g * dim);
        for (int64_t d = 0; d < group * dim; d++) queries[d] *= m->scaling;
        int64_t count = entries + 1 - first < BLOCK ? entries + 1 - first : BLOCK;
        int64_t biased = c->bias && c->biased > first ? c->biased - first : 0;
        const float *bias = biased ? c->bias + (layer * m->kv_heads + h) * c->biased + first : 0;
        read_group(queries, group, keys + first * dim, values + first * dim, bias, biased, count,
                   dim, parts + (h * group * blocks + block) * (dim + 2), blocks * (dim + 2));
    }
    await(phase, m->kv_heads * blocks);
}

/* One phase: parts (heads, blocks, dim + 2) -> mixed (heads, dim), each block by its share. */
static void join(Phase *phase, const Model *m, int64_t blocks, const float *parts, float *mixed) {
    int64_t dim = m->dim, width = dim + 2;
    for (int64_t h; (h = claim(phase, m->heads)) >= 0; finished(phase)) {
        const float *part = parts + h * blocks * width;
        float most = -INFINITY, mass = 0, *out = mixed + h * dim;
        for (int64_t b = 0; b < blocks; b++)
            if (part[b * width + dim] > most) most = part[b * width + dim];
        memset(out, 0, dim * sizeof *out);
        for (int64_t b = 0; b < blocks; b++) {
            float share = expf(part[b * width + dim] - most);
            mass += share * part[b * width + dim + 1];
            for (int64_t d = 0; d < dim; d++) out[d] += share * part[b * width + d];
        }
        for (int64_t d = 0; d < dim; d++) out[d] /= mass;
    }
    await(phase, m->heads);
}

/* y = m x, for the vocabulary head after a prompt. */
void product(const Matrix *m, const float *x, float *y) {
    Phase phase = {0};
#pragma omp parallel
    multiply(&phase, m, x, 0, 0, y, SET);
}

/* x (hidden) is the token's embedding and is overwritten; cos, sin (dim) are of its position; the
cache holds `entries` before it and one more after it. scratch: 2 * (heads + kv_heads) * dim +
inner + heads * (entries / 128 + 1) * (dim + 2) floats. logits: (vocabulary). */
void step(const Model *m, const Cache *c, float *x, const float *cos, const float *sin,
          int64_t entries, float *scratch, float *logits) {
    Phase phases[m->layers * PHASES_A_LAYER + 1];
    memset(phases, 0, sizeof phases);
    float *qkv = scratch, *mixed = qkv + (m->heads + 2 * m->kv_heads) * m->dim;
    float *gate = mixed + m->heads * m->dim, *parts = gate + m->inner;
#pragma omp parallel
    {
        Phase *p = phases;
        for (int64_t i = 0; i < m->layers; i++) {
            const Layer *l = m->layer + i;
            multiply(p++, &l->qkv, x, l->norm_in, m->eps, qkv, SET);
            attend(p++, m, c, i, cos, sin, entries, qkv, parts);
            join(p++, m, entries / BLOCK + 1, parts, mixed);
            multiply(p++, &l->out, mixed, 0, 0, x, ADD);
            multiply(p++, &l->gate_up, x, l->norm_mid, m->eps, gate, GATE);
            multiply(p++, &l->down, gate, 0, 0, x, ADD);
        }
        multiply(p, &m->head, x, m->norm, m->eps, logits, SET);
    }
}
