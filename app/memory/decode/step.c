/* One token of each of several requests through a decoder of the Llama shape, weights in 8 or 4
bits, activations in float.

A token multiplies every weight once, so its time is the time of reading the weights and the cache.
Here they are read packed, by all threads, in one call per token, and once for all requests. What a
request gets does not depend on those beside it: its sums have the same order, bit for bit. Loops
are written for the compiler to vectorise with whatever the processor has. app/memory/decode/native.py has
the same structs.

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
typedef uint16_t h8 __attribute__((vector_size(16), aligned(2)));
typedef float f16 __attribute__((vector_size(64), aligned(4)));
typedef int32_t i16 __attribute__((vector_size(64), aligned(4)));
typedef int8_t s16 __attribute__((vector_size(16), aligned(1)));
typedef uint8_t u16 __attribute__((vector_size(16), aligned(1)));

enum { GROUP = 32, BLOCK = 128, FOUR = 4, EIGHT = 8 };

/* bits 8: int8 (rows, cols), one scale a row, cols a multiple of 16. bits 4: nibbles of groups of 32,
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

/* cos, sin (dim) are of the token's position; the cache holds `entries` before it and gets one. */
typedef struct {
    Cache cache;
    const float *cos, *sin;
    int64_t entries;
} Request;

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

/* Sixteen bytes, each made wide. GCC 12 takes the general form apart into single elements. */
#if defined(__AVX512F__)
static inline i16 unsigned16(const uint8_t *p) {
    return (i16)_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)p));
}
static inline i16 signed16(const int8_t *p) {
    return (i16)_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p));
}
#elif defined(__AVX2__)
typedef union { __m256i half[2]; i16 whole; } Halves;
static inline i16 unsigned16(const uint8_t *p) {
    return ((Halves){{_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)p)),
                      _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(p + 8)))}}).whole;
}
static inline i16 signed16(const int8_t *p) {
    return ((Halves){{_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)p)),
                      _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(p + 8)))}}).whole;
}
#else
static inline i16 unsigned16(const uint8_t *p) {
    return __builtin_convertvector(*(const u16 *)p, i16);
}
static inline i16 signed16(const int8_t *p) { return __builtin_convertvector(*(const s16 *)p, i16); }
#endif

static inline float sum(f8 v) {
    return ((v[0] + v[4]) + (v[1] + v[5])) + ((v[2] + v[6]) + (v[3] + v[7]));
}

static inline float sum16(f16 v) {
    union { f16 whole; f8 half[2]; } x = {v};
    return sum(x.half[0] + x.half[1]);
}

/* One row of a matrix with `count` inputs (count, cols) -> out (count). Each weight is made wide
once for all of them. */
static inline __attribute__((always_inline)) void row8(const int8_t *w, float scale, const float *x,
                                                       int count, int64_t cols, float *out) {
    f16 a[EIGHT] = {{0}};
    for (int64_t k = 0; k < cols; k += 16) {
        f16 weight = __builtin_convertvector(signed16(w + k), f16);
        for (int c = 0; c < count; c++) a[c] += weight * *(const f16 *)(x + c * cols + k);
    }
    for (int c = 0; c < count; c++) out[c] = sum16(a[c]) * scale;
}

static inline __attribute__((always_inline)) void row4(const uint8_t *w, const uint32_t *scales,
                                                       const float *x, int count, int64_t cols,
                                                       float *out) {
    f16 a[EIGHT] = {{0}}, b[EIGHT] = {{0}};
    for (int64_t k = 0; k < cols; k += GROUP, w += GROUP / 2, scales++) {
        float step = bf16(*scales >> 16), lowest = bf16(*scales & 0xffff);
        i16 codes = unsigned16(w);
        f16 low = __builtin_convertvector(codes & 15, f16) * step + lowest;
        f16 high = __builtin_convertvector(codes >> 4, f16) * step + lowest;
        for (int c = 0; c < count; c++) {
            a[c] += low * *(const f16 *)(x + c * cols + k);
            b[c] += high * *(const f16 *)(x + c * cols + k + 16);
        }
    }
    for (int c = 0; c < count; c++) out[c] = sum16(a[c] + b[c]);
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

/* One row with up to eight inputs x (n, cols) -> out (n). */
static inline void dot(const Matrix *m, int64_t row, const float *x, int64_t n, float *out) {
    int64_t cols = m->cols;
    const uint8_t *w4 = (const uint8_t *)m->values + row * cols / 2;
    const uint32_t *steps = (const uint32_t *)m->scales + row * (cols / GROUP);
    const int8_t *w8 = (const int8_t *)m->values + row * cols;
#define ROW(count)                              \
    case count:                                 \
        if (m->bits == 4)                       \
            row4(w4, steps, x, count, cols, out); \
        else                                    \
            row8(w8, ((const float *)m->scales)[row], x, count, cols, out); \
        break;
    switch (n) { ROW(1) ROW(2) ROW(3) ROW(4) ROW(5) ROW(6) ROW(7) ROW(8) }
#undef ROW
    for (int64_t c = 0; c < n && m->bias; c++) out[c] += m->bias[row];
}

static void normalise(const float *x, const float *weight, float *y, int64_t n, float eps) {
    float squares = 0;
    for (int64_t i = 0; i < n; i++) squares += x[i] * x[i];
    float scale = 1.0f / sqrtf(squares / n + eps);
    for (int64_t i = 0; i < n; i++) y[i] = x[i] * scale * weight[i];
}

/* What a product does with its rows. */
typedef enum { SET, ADD, GATE } Use;

/* One phase: y = m x, or y += m x, or y = silu(upper half) * lower half, for each of n inputs x
(n, cols). They are normalised first if there is a norm. Only who has claimed a piece reads x: it
stays as it is until that piece is done. */
static void multiply(Phase *phase, const Matrix *m, int64_t n, const float *x, const float *norm,
                     float eps, float *y, Use use) {
    int64_t cols = m->cols, rows = use == GATE ? m->rows / 2 : m->rows;
    float normed[norm ? n * cols : 1], found[EIGHT], gated[EIGHT];
    int64_t size = rows / (4 * omp_get_num_threads()) + 1, pieces = (rows + size - 1) / size;
    int ready = norm == 0;
    for (int64_t piece; (piece = claim(phase, pieces)) >= 0; finished(phase)) {
        for (int64_t c = 0; c < n && !ready; c++)
            normalise(x + c * cols, norm, normed + c * cols, cols, eps);
        ready = 1;
        int64_t end = (piece + 1) * size < rows ? (piece + 1) * size : rows;
        /* Eight inputs at a time stay in the nearest cache while the rows pass by. */
        for (int64_t c = 0; c < n; c += EIGHT) {
            const float *some = (norm ? normed : x) + c * cols;
            int64_t count = n - c < EIGHT ? n - c : EIGHT;
            for (int64_t r = piece * size; r < end; r++) {
                dot(m, r, some, count, found);
                if (use == GATE) {
                    dot(m, rows + r, some, count, gated);
                    for (int64_t i = 0; i < count; i++)
                        found[i] = found[i] / (1.0f + expf(-found[i])) * gated[i];
                }
                for (int64_t i = 0; i < count; i++) {
                    float *to = y + (c + i) * rows + r;
                    *to = use == ADD ? *to + found[i] : found[i];
                }
            }
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

/* Blocks of all requests' entries; of those before request r where it is not the number of all. */
static int64_t blocks_of(const Request *requests, int64_t r) {
    int64_t blocks = 0;
    while (r-- > 0) blocks += requests[r].entries / BLOCK + 1;
    return blocks;
}

/* One phase: queries, keys and values (n, heads + 2 kv_heads, dim) -> parts (heads, blocks, dim + 2)
of each request, one after the other. A piece is a block of one key-value head's entries, read by
all its query heads. The last block's piece writes the new token's key and value to the cache. */
static void attend(Phase *phase, const Model *m, int64_t n, const Request *requests, int64_t layer,
                   const float *all, float *all_parts) {
    const Layer *l = m->layer + layer;
    int64_t dim = m->dim, group = m->heads / m->kv_heads, total = blocks_of(requests, n);
    float queries[group * dim], key[dim];
    for (int64_t i; (i = claim(phase, m->kv_heads * total)) >= 0; finished(phase)) {
        int64_t before = 0, r = 0, blocks;
        while (i >= m->kv_heads * (before + (blocks = requests[r].entries / BLOCK + 1))) {
            before += blocks;
            r++;
        }
        const Request *request = requests + r;
        const Cache *c = &request->cache;
        const float *qkv = all + r * (m->heads + 2 * m->kv_heads) * dim;
        float *parts = all_parts + m->heads * before * (dim + 2);
        int64_t entries = request->entries, mine = i - m->kv_heads * before;
        int64_t h = mine / blocks, block = mine % blocks, first = block * BLOCK;
        int64_t at = (layer * m->kv_heads + h) * c->capacity * dim;
        uint16_t *keys = c->keys + at, *values = c->values + at;
        if (block == blocks - 1) {
            const float *k = qkv + (m->heads + h) * dim, *v = k + m->kv_heads * dim;
            prepare(k, l->norm_k, l->rotary, m->eps, request->cos, request->sin, dim, key);
            for (int64_t d = 0; d < dim; d++) {
                keys[entries * dim + d] = to_bf16(key[d]);
                values[entries * dim + d] = to_bf16(v[d]);
            }
        }
        for (int64_t g = 0; g < group; g++)
            prepare(qkv + (h * group + g) * dim, l->norm_q, l->rotary, m->eps, request->cos,
                    request->sin, dim, queries + g * dim);
        for (int64_t d = 0; d < group * dim; d++) queries[d] *= m->scaling;
        int64_t count = entries + 1 - first < BLOCK ? entries + 1 - first : BLOCK;
        int64_t biased = c->bias && c->biased > first ? c->biased - first : 0;
        const float *bias = biased ? c->bias + (layer * m->kv_heads + h) * c->biased + first : 0;
        read_group(queries, group, keys + first * dim, values + first * dim, bias, biased, count,
                   dim, parts + (h * group * blocks + block) * (dim + 2), blocks * (dim + 2));
    }
    await(phase, m->kv_heads * total);
}

/* One phase: the parts of each request -> mixed (n, heads, dim), each block by its share. */
static void join(Phase *phase, const Model *m, int64_t n, const Request *requests,
                 const float *parts, float *mixed) {
    int64_t dim = m->dim, width = dim + 2;
    for (int64_t i; (i = claim(phase, n * m->heads)) >= 0; finished(phase)) {
        int64_t r = i / m->heads, blocks = requests[r].entries / BLOCK + 1;
        const float *part = parts + (m->heads * blocks_of(requests, r) + i % m->heads * blocks) * width;
        float most = -INFINITY, mass = 0, *out = mixed + i * dim;
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
    await(phase, n * m->heads);
}

/* y (n, rows) = m x, x (n, cols), for the vocabulary head after prompts. */
void product(const Matrix *m, int64_t n, const float *x, float *y) {
    Phase phase = {0};
#pragma omp parallel
    multiply(&phase, m, n, x, 0, 0, y, SET);
}

/* x (n, hidden) are the embeddings of the requests' tokens and are overwritten. scratch: for each
request 2 * (heads + kv_heads) * dim + inner + heads * (entries / 128 + 1) * (dim + 2) floats.
logits: (n, vocabulary). */
void step(const Model *m, int64_t n, const Request *requests, float *x, float *scratch,
          float *logits) {
    Phase phases[m->layers * PHASES_A_LAYER + 1];
    memset(phases, 0, sizeof phases);
    float *qkv = scratch, *mixed = qkv + n * (m->heads + 2 * m->kv_heads) * m->dim;
    float *gate = mixed + n * m->heads * m->dim, *parts = gate + n * m->inner;
#pragma omp parallel
    {
        Phase *p = phases;
        for (int64_t i = 0; i < m->layers; i++) {
            const Layer *l = m->layer + i;
            multiply(p++, &l->qkv, n, x, l->norm_in, m->eps, qkv, SET);
            attend(p++, m, n, requests, i, qkv, parts);
            join(p++, m, n, requests, parts, mixed);
            multiply(p++, &l->out, n, mixed, 0, 0, x, ADD);
            multiply(p++, &l->gate_up, n, x, l->norm_mid, m->eps, gate, GATE);
            multiply(p++, &l->down, n, gate, 0, 0, x, ADD);
        }
        multiply(p, &m->head, n, x, m->norm, m->eps, logits, SET);
    }
}
