/* One token through a decoder of the Llama shape, weights in 8 or 4 bits, activations in float.

A single token multiplies every weight once, so its time is the time of reading the weights and the
cache. Here they are read packed, by all threads, in one call per token. Loops are written for the
compiler to vectorise with whatever the processor has. app/memory/native.py has the same structs. */

#include <math.h>
#include <stdint.h>
#include <string.h>

typedef float f8 __attribute__((vector_size(32), aligned(4)));
typedef int32_t i8 __attribute__((vector_size(32), aligned(4)));
typedef int8_t s8 __attribute__((vector_size(8), aligned(1)));
typedef uint8_t u8 __attribute__((vector_size(8), aligned(1)));
typedef uint16_t h8 __attribute__((vector_size(16), aligned(2)));

enum { GROUP = 32 };

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

static inline float sum(f8 v) {
    return ((v[0] + v[4]) + (v[1] + v[5])) + ((v[2] + v[6]) + (v[3] + v[7]));
}

static float row8(const int8_t *w, const float *x, int64_t cols) {
    f8 a = {0}, b = {0};
    int64_t k = 0;
    for (; k + 16 <= cols; k += 16) {
        a += __builtin_convertvector(*(const s8 *)(w + k), f8) * *(const f8 *)(x + k);
        b += __builtin_convertvector(*(const s8 *)(w + k + 8), f8) * *(const f8 *)(x + k + 8);
    }
    if (k < cols) a += __builtin_convertvector(*(const s8 *)(w + k), f8) * *(const f8 *)(x + k);
    return sum(a + b);
}

static float row4(const uint8_t *w, const uint32_t *scales, const float *x, const float *sums,
                  int64_t groups) {
    f8 total = {0};
    float lowest = 0;
    for (int64_t g = 0; g < groups; g++, w += 16, x += GROUP) {
        i8 a = __builtin_convertvector(*(const u8 *)w, i8);
        i8 b = __builtin_convertvector(*(const u8 *)(w + 8), i8);
        f8 part = __builtin_convertvector(a & 15, f8) * *(const f8 *)x;
        f8 more = __builtin_convertvector(b & 15, f8) * *(const f8 *)(x + 8);
        part += __builtin_convertvector(a >> 4, f8) * *(const f8 *)(x + 16);
        more += __builtin_convertvector(b >> 4, f8) * *(const f8 *)(x + 24);
        total += (part + more) * bf16(scales[g] >> 16);
        lowest += bf16(scales[g] & 0xffff) * sums[g];
    }
    return sum(total) + lowest;
}

/* Called by all threads of a team; ends with a barrier. add: y is added to, not set. */
static void multiply(const Matrix *m, const float *x, float *y, int add) {
    int64_t groups = m->cols / GROUP;
    float sums[m->bits == 4 ? groups : 1];
    if (m->bits == 4)
        for (int64_t g = 0; g < groups; g++) {
            sums[g] = 0;
            for (int j = 0; j < GROUP; j++) sums[g] += x[g * GROUP + j];
        }
#pragma omp for schedule(static)
    for (int64_t r = 0; r < m->rows; r++) {
        float dot;
        if (m->bits == 4)
            dot = row4((const uint8_t *)m->values + r * m->cols / 2,
                       (const uint32_t *)m->scales + r * groups, x, sums, groups);
        else
            dot = row8((const int8_t *)m->values + r * m->cols, x, m->cols) *
                  ((const float *)m->scales)[r];
        if (m->bias) dot += m->bias[r];
        y[r] = add ? y[r] + dot : dot;
    }
}

static void normalise(const float *x, const float *weight, float *y, int64_t n, float eps) {
    float squares = 0;
    for (int64_t i = 0; i < n; i++) squares += x[i] * x[i];
    float scale = 1.0f / sqrtf(squares / n + eps);
    for (int64_t i = 0; i < n; i++) y[i] = x[i] * scale * weight[i];
}

static void turn(float *head, const float *cos, const float *sin, int64_t dim) {
    for (int64_t i = 0, half = dim / 2; i < half; i++) {
        float a = head[i], b = head[i + half];
        head[i] = a * cos[i] - b * sin[i];
        head[i + half] = b * cos[i + half] + a * sin[i + half];
    }
}

/* Softmax attention of one query over `entries` cached keys; scores is scratch of that length. */
static void attend(const float *q, const uint16_t *keys, const uint16_t *values, const float *bias,
                   int64_t biased, int64_t entries, int64_t dim, float *scores, float *out) {
    float most = -INFINITY, mass = 0;
    for (int64_t e = 0; e < entries; e++) {
        f8 a = {0};
        for (int64_t d = 0; d < dim; d += 8) a += wide(keys + e * dim + d) * *(const f8 *)(q + d);
        scores[e] = sum(a);
        if (bias && e < biased) scores[e] += bias[e];
        if (scores[e] > most) most = scores[e];
    }
    for (int64_t e = 0; e < entries; e++) mass += scores[e] = expf(scores[e] - most);
    memset(out, 0, dim * sizeof *out);
    for (int64_t e = 0; e < entries; e++) {
        float w = scores[e] / mass;
        for (int64_t d = 0; d < dim; d += 8) *(f8 *)(out + d) += wide(values + e * dim + d) * w;
    }
}

/* y = m x, for the vocabulary head after a prompt. */
void product(const Matrix *m, const float *x, float *y) {
#pragma omp parallel
    multiply(m, x, y, 0);
}

/* x (hidden) is the token's embedding and becomes the last hidden state; cos, sin (dim) are of its
position; the cache holds `entries` before it and one more after it. scratch: hidden + 2 * heads *
dim + 2 * kv_heads * dim + 2 * inner + heads * capacity floats. logits: (vocabulary). */
void step(const Model *m, const Cache *c, float *x, const float *cos, const float *sin,
          int64_t entries, float *scratch, float *logits) {
    int64_t dim = m->dim, group = m->heads / m->kv_heads, inner = m->inner;
    float *normed = scratch, *q = normed + m->hidden, *k = q + m->heads * dim;
    float *v = k + m->kv_heads * dim, *mixed = v + m->kv_heads * dim;
    float *gate = mixed + m->heads * dim, *scores = gate + 2 * inner;
#pragma omp parallel
    for (int64_t i = 0; i < m->layers; i++) {
        const Layer *l = m->layer + i;
        uint16_t *keys = c->keys + i * m->kv_heads * c->capacity * dim;
        uint16_t *values = c->values + i * m->kv_heads * c->capacity * dim;
#pragma omp single
        normalise(x, l->norm_in, normed, m->hidden, m->eps);
        multiply(&l->qkv, normed, q, 0);
#pragma omp for schedule(static)
        for (int64_t h = 0; h < m->kv_heads; h++) {
            float *key = k + h * dim, *value = v + h * dim;
            if (l->norm_k) normalise(key, l->norm_k, key, dim, m->eps);
            if (l->rotary) turn(key, cos, sin, dim);
            int64_t at = (h * c->capacity + entries) * dim;
            for (int64_t d = 0; d < dim; d++) {
                keys[at + d] = to_bf16(key[d]);
                values[at + d] = to_bf16(value[d]);
            }
        }
#pragma omp for schedule(static)
        for (int64_t h = 0; h < m->heads; h++) {
            int64_t kv = h / group, start = kv * c->capacity * dim;
            float *query = q + h * dim;
            if (l->norm_q) normalise(query, l->norm_q, query, dim, m->eps);
            if (l->rotary) turn(query, cos, sin, dim);
            for (int64_t d = 0; d < dim; d++) query[d] *= m->scaling;
            const float *bias = c->bias ? c->bias + (i * m->kv_heads + kv) * c->biased : 0;
            attend(query, keys + start, values + start, bias, c->biased, entries + 1, dim,
                   scores + h * c->capacity, mixed + h * dim);
        }
        multiply(&l->out, mixed, x, 1);
#pragma omp single
        normalise(x, l->norm_mid, normed, m->hidden, m->eps);
        multiply(&l->gate_up, normed, gate, 0);
#pragma omp for schedule(static)
        for (int64_t j = 0; j < inner; j++)
            gate[j] = gate[j] / (1.0f + expf(-gate[j])) * gate[inner + j];
        multiply(&l->down, gate, x, 1);
    }
    normalise(x, m->norm, normed, m->hidden, m->eps);
    product(&m->head, normed, logits);
}
