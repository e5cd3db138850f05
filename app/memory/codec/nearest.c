/* Product quantisation: which of 256 codewords is nearest, for each piece of each row.

The words of one piece stay in the nearest cache while the rows pass by, and distances are made and
compared in registers: a vector here is as many of the processor's as it takes. */

#include <stdint.h>
#include <string.h>

enum { WORDS = 256, LANES = 16, VECTORS = 4, STEP = LANES * VECTORS };

typedef float floats __attribute__((vector_size(LANES * sizeof(float))));
typedef int32_t ints __attribute__((vector_size(LANES * sizeof(int32_t))));

static inline floats loaded(const float *from) {
    floats found;
    memcpy(&found, from, sizeof found);
    return found;
}

/* A distance gives its last 8 bits to the number of its word, so that the least of them, as whole
numbers, tells which: what is lost decides between distances that are equal to 4 digits, or that
rounding has made less than none. */
static inline uint8_t number(const float *restrict x, int64_t length, const float *restrict words,
                             const float *restrict halves) {
    const ints lanes = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    ints least = lanes * 0 + INT32_MAX;
    float own = 0;
    for (int64_t i = 0; i < length; i++) own += x[i] * x[i] / 2;
    for (int first = 0; first < WORDS; first += STEP) {
        floats distance[VECTORS];
        for (int v = 0; v < VECTORS; v++) distance[v] = loaded(halves + first + v * LANES) + own;
        for (int64_t i = 0; i < length; i++)
            for (int v = 0; v < VECTORS; v++)
                distance[v] -= x[i] * loaded(words + i * WORDS + first + v * LANES);
        for (int v = 0; v < VECTORS; v++) {
            ints bits = ((ints)distance[v] & -WORDS) | (lanes + (first + v * LANES));
            ints less = bits < least;
            least = (less & bits) | (~less & least);
        }
    }
    int32_t found = least[0];
    for (int lane = 1; lane < LANES; lane++) found = least[lane] < found ? least[lane] : found;
    return found & (WORDS - 1);
}

/* x (n, width), float: the pieces of a row one behind the other, `lengths` (pieces) of them.
words: for each piece (length, 256); halves (pieces, 256): half the squares of their lengths.
codes (n, pieces). */
void nearest(int64_t n, int64_t width, const float *x, int64_t pieces, const int64_t *lengths,
             const float *words, const float *halves, uint8_t *codes) {
    for (int64_t p = 0; p < pieces; x += lengths[p], words += lengths[p] * WORDS, p++)
        for (int64_t row = 0; row < n; row++)
            codes[row * pieces + p] =
                number(x + row * width, lengths[p], words, halves + p * WORDS);
}
