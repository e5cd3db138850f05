/* Product quantisation: which of 256 codewords is nearest, for each piece of each row.

The words of one piece stay in the nearest cache while the rows pass by, and no distance leaves it.
Loops are written for the compiler to vectorise with whatever the processor has. */

#include <stdint.h>
#include <string.h>

enum { WORDS = 256 };

/* A distance gives its last 8 bits to the number of its word, so that the least of them, as whole
numbers, tells which: what is lost decides between distances that are equal to 4 digits. */
static inline uint8_t number(const float *restrict x, int64_t length, const float *restrict words,
                             const float *restrict halves) {
    float distance[WORDS], own = 0;
    int32_t bits[WORDS], least = INT32_MAX;
    for (int64_t i = 0; i < length; i++) own += x[i] * x[i] / 2;
    for (int j = 0; j < WORDS; j++) distance[j] = halves[j] + own;
    for (int64_t i = 0; i < length; i++)
        for (int j = 0; j < WORDS; j++) distance[j] -= x[i] * words[i * WORDS + j];
    memcpy(bits, distance, sizeof bits);
    for (int j = 0; j < WORDS; j++) {
        int32_t marked = ((bits[j] > 0 ? bits[j] : 0) & -WORDS) | j;
        least = marked < least ? marked : least;
    }
    return least & (WORDS - 1);
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
