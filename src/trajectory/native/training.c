/* The operations of training between its matrix products: attention, GELU and dropout, forward and backward.

   Compiled on first use by library.py:
     HEAD          channels of a head
     DOUBLE        doubles instead of floats, for tests

   Attention is computed head by head: the scores of one window and head fit into a core's cache. The backward pass
   computes them again, so they are never written to memory. Value tokens are no keys, and a block of queries is
   multiplied just with the keys within its span. Dropout hashes a seed and an element's number, so that no mask is
   stored. */

#define FITS_64 (HEAD % (64 / SIZE) == 0)
#include "vectors.h"

#define WIDE (HEAD / LANES % 2 ? 1 : 2)     /* vectors of columns of a product at a time */
#define PANEL (WIDE * LANES)
#define BLOCK (REGISTERS / WIDE < 16 ? REGISTERS / WIDE : 16) /* rows of a product at a time: GCC unrolls up to 16 */
#if HEAD % LANES
#error "this architecture is computed by torch"
#endif

typedef struct {
    int64_t batch, tokens, heads;           /* of (batch, tokens, 3, heads, HEAD) queries, keys and values */
    int64_t dimensions, attention_span;     /* tokens of a transition; transitions that a token attends to */
    const real *rotations;                  /* (2, tokens, HEAD / 2) cosines and sines, or null */
    uint32_t threshold, seed[2];            /* elements whose hash is below the threshold are dropped */
} Attention;

/* ---- dropout ---- */

INLINE uint32_t hashed(uint32_t x) /* "lowbias32" of the hash prospector by C. Wellons, 2018 */
{
    x ^= x >> 16, x *= 0x7feb352dU;
    x ^= x >> 15, x *= 0x846ca68bU;
    return x ^ x >> 16;
}

/* dropout factors of elements first to first + count: 0, or the scale that keeps the mean */
INLINE void dropout_factors(real *factors, int64_t count, uint32_t first, uint32_t threshold, const uint32_t *seed)
{
    const real scale = (real)(4294967296.0 / (4294967296.0 - threshold));
    for (int64_t i = 0; i < count; i++) {
        uint32_t x = hashed(hashed((uint32_t)i + first + seed[0]) ^ seed[1]);
        factors[i] = x < threshold ? 0 : scale;
    }
}

#define STRIP 256

/* elements first to end: y = x with dropout, plus the residual unless that is null */
void dropout(const real *x, const real *residual, real *y, int64_t first, int64_t end, uint32_t threshold,
             const uint32_t *seed)
{
    real factors[STRIP];
    for (; first < end; first += STRIP) {
        int64_t count = end - first < STRIP ? end - first : STRIP;
        dropout_factors(factors, count, (uint32_t)first, threshold, seed);
        if (residual) for (int64_t i = 0; i < count; i++) y[first + i] = residual[first + i] + x[first + i] * factors[i];
        else for (int64_t i = 0; i < count; i++) y[first + i] = x[first + i] * factors[i];
    }
}

/* ---- GELU ---- */

static void vector_gelu(const real *x, const real *dy, real *y)
{
    if (dy) STORE(y, LOAD(dy) * gelu_slope(LOAD(x)));
    else STORE(y, gelu(LOAD(x)));
}

/* elements first to end: y = GELU(x), or dy times its derivative unless dy is null; y may be dy */
void activate(const real *x, const real *dy, real *y, int64_t first, int64_t end)
{
    for (; first + LANES <= end; first += LANES) vector_gelu(x + first, dy ? dy + first : 0, y + first);
    if (first < end) {
        real a[LANES] = {0}, b[LANES] = {0}, c[LANES];
        memcpy(a, x + first, sizeof(real) * (end - first));
        if (dy) memcpy(b, dy + first, sizeof(real) * (end - first));
        vector_gelu(a, dy ? b : 0, c);
        memcpy(y + first, c, sizeof(real) * (end - first));
    }
}

/* ---- products ---- */

/* y (BLOCK, PANEL) = a (BLOCK, k) times b (k, PANEL), with their strides */
INLINE void block(const real *a, int64_t a_row, int64_t a_column, const real *b, int64_t b_row, int64_t k, real *y,
                  int64_t y_row)
{
    vec sums[BLOCK * WIDE];
    for (int i = 0; i < BLOCK * WIDE; i++) sums[i] = splat(0);
    multiply(BLOCK, WIDE, a, a_row, a_column, b, b_row, k, sums);
    for (int i = 0; i < BLOCK; i++)
        for (int j = 0; j < WIDE; j++) STORE(y + i * y_row + j * LANES, sums[i * WIDE + j]);
}

/* (BLOCK, k) times (k, HEAD) */
INLINE void block_to_head(const real *a, int64_t a_row, int64_t a_column, const real *b, int64_t k, real *y)
{
    for (int c = 0; c < HEAD; c += PANEL) block(a, a_row, a_column, b + c, HEAD, k, y + c, HEAD);
}

/* ---- attention ---- */

/* x in the columns from `first` to `end`, else the other; lane l is column + l */
INLINE vec within(vec x, int64_t column, int64_t first, int64_t end, vec other)
{
    ivec columns;
    for (int l = 0; l < LANES; l++) columns[l] = l;
    columns += (integer)column;
    return choose((columns >= (integer)first) & (columns < (integer)end), x, other);
}

INLINE real largest(const real *row, int64_t first, int64_t end)
{
    vec most = splat(-INFINITY);
    for (int64_t c = first / LANES * LANES; c < end; c += LANES)
        most = larger(most, within(LOAD(row + c), c, first, end, most));
    return largest_of(most);
}

/* row = exp(row - most) from `first` to `end`, and 0 in the rest of their vectors; returns the sum */
INLINE real exponentials(real *row, int64_t first, int64_t end, real most)
{
    vec sums = splat(0);
    for (int64_t c = first / LANES * LANES; c < end; c += LANES) {
        vec x = within(LOAD(row + c), c, first, end, splat(most));
        vec e = within(exponential(x - most), c, first, end, splat(0));
        STORE(row + c, e);
        sums += e;
    }
    return sum_of(sums);
}

#define ROUND_UP(n, unit) (((n) + (unit) - 1) / (unit) * (unit))

typedef struct {
    int64_t rows, keys, columns;            /* queries, padded; keys; keys, padded */
    real *q, *k, *v, *k_transposed, *v_transposed, *scores; /* (rows, HEAD), (columns, HEAD), transposed */
    real *dy, *slopes, *out, *factors;      /* (rows, HEAD); (rows, columns) as scores; (rows or columns, HEAD) */
} Work;

INLINE int64_t larger_of(int64_t a, int64_t b) { return a > b ? a : b; }
INLINE int64_t smaller_of(int64_t a, int64_t b) { return a < b ? a : b; }

/* between the numbers of tokens and of keys, which value tokens do not have */
INLINE int64_t key_of(const Attention *on, int64_t token) { return token - token / on->dimensions; }
INLINE int64_t token_of(const Attention *on, int64_t key) { return key + key / (on->dimensions - 1); }
INLINE int64_t first_key(const Attention *on, int64_t token)
{
    return larger_of(0, token / on->dimensions - on->attention_span + 1) * (on->dimensions - 1);
}

static Work partition(const Attention *on, real *scratch)
{
    Work w;
    w.rows = ROUND_UP(on->tokens, BLOCK), w.keys = key_of(on, on->tokens);
    w.columns = ROUND_UP(ROUND_UP(w.keys, BLOCK), PANEL);
    int64_t most = larger_of(w.rows, ROUND_UP(w.columns, BLOCK)), columns = most * HEAD;
    w.q = scratch, w.k = w.q + columns, w.v = w.k + columns, w.k_transposed = w.v + columns;
    w.v_transposed = w.k_transposed + columns, w.dy = w.v_transposed + columns, w.out = w.dy + columns;
    w.scores = w.out + columns, w.slopes = w.scores + most * w.columns, w.factors = w.slopes + most * w.columns;
    return w;
}

/* size, in numbers, of the scratch memory of a thread */
int64_t attention_scratch(const Attention *on)
{
    Work w = partition(on, 0);
    return (w.factors - w.q) + w.columns;
}

/* rotates x by a token's angles (direction 1), or back (direction -1) */
INLINE void rotate(const Attention *on, int64_t token, real *x, real direction)
{
    if (!on->rotations) return;
    const real *cosine = on->rotations + token * (HEAD / 2), *sine = cosine + on->tokens * (HEAD / 2);
    for (int c = 0; c < HEAD / 2; c++) {
        real a = x[c], b = x[HEAD / 2 + c], s = direction * sine[c];
        x[c] = a * cosine[c] - b * s, x[HEAD / 2 + c] = a * s + b * cosine[c];
    }
}

/* loads the scaled queries, the keys and the values of one window and head */
static void load(const Attention *on, const Work *w, const real *qkv)
{
    const int64_t stride = 3 * on->heads * HEAD;
    const real scale = 1 / sqrt((real)HEAD);
    memset(w->q, 0, sizeof(real) * w->rows * HEAD);
    memset(w->k, 0, sizeof(real) * w->columns * HEAD);
    memset(w->v, 0, sizeof(real) * w->columns * HEAD);
    for (int64_t t = 0; t < on->tokens; t++) {
        const real *x = qkv + t * stride;
        real *q = w->q + t * HEAD;
        for (int c = 0; c < HEAD; c++) q[c] = scale * x[c];
        rotate(on, t, q, 1);
        if (t % on->dimensions == on->dimensions - 1) continue;
        real *k = w->k + key_of(on, t) * HEAD, *v = w->v + key_of(on, t) * HEAD;
        memcpy(k, x + on->heads * HEAD, sizeof(real) * HEAD);
        memcpy(v, x + 2 * on->heads * HEAD, sizeof(real) * HEAD);
        rotate(on, t, k, 1);
    }
}

INLINE void transpose(const real *x, int64_t rows, real *y)
{
    for (int64_t r = 0; r < rows; r++)
        for (int c = 0; c < HEAD; c++) y[c * rows + r] = x[r * HEAD + c];
}

/* scores (rows, columns) = x (rows, HEAD) times transposed (HEAD, columns), within the span of a block's queries */
INLINE void scores_of(const Attention *on, const Work *w, const real *x, const real *transposed, real *scores)
{
    for (int64_t i = 0; i < w->rows; i += BLOCK) {
        int64_t end = key_of(on, smaller_of(i + BLOCK, on->tokens));
        for (int64_t j = first_key(on, i) / PANEL * PANEL; j < end; j += PANEL)
            block(x + i * HEAD, HEAD, 1, transposed + j, w->columns, HEAD, scores + i * w->columns + j, w->columns);
    }
}

/* y (rows, HEAD) = scores (rows, columns) times x (columns, HEAD) */
INLINE void gather(const Attention *on, const Work *w, const real *scores, const real *x, real *y)
{
    for (int64_t i = 0; i < w->rows; i += BLOCK) {
        int64_t first = first_key(on, i), end = key_of(on, smaller_of(i + BLOCK, on->tokens));
        block_to_head(scores + i * w->columns + first, w->columns, 1, x + first * HEAD, end - first, y + i * HEAD);
    }
}

/* y (columns, HEAD) = scores, transposed, times x (rows, HEAD) */
INLINE void scatter(const Attention *on, const Work *w, const real *scores, const real *x, real *y)
{
    for (int64_t j = 0; j < w->keys; j += BLOCK) {
        int64_t first = token_of(on, j), last = token_of(on, smaller_of(j + BLOCK, w->keys) - 1);
        int64_t end = smaller_of(on->tokens, (last / on->dimensions + on->attention_span) * on->dimensions);
        block_to_head(scores + first * w->columns + j, 1, w->columns, x + first * HEAD, end - first, y + j * HEAD);
    }
}

INLINE uint32_t element_number(const Attention *on, const Work *w, int64_t unit, int64_t token)
{
    return (uint32_t)((unit * on->tokens + token) * w->columns);
}

INLINE void clear_outside(real *row, int64_t first, int64_t end, int64_t columns)
{
    memset(row, 0, sizeof(real) * first);
    memset(row + end, 0, sizeof(real) * (columns - end));
}

/* For the windows from `first` to `end`: qkv (batch, tokens, 3, heads, HEAD) -> out (batch, tokens, heads, HEAD), and
   the logarithm of every softmax's sum (batch, heads, tokens). */
void attention(const Attention *on, const real *qkv, real *out, real *sums, int64_t first, int64_t end, real *scratch)
{
    const Work w = partition(on, scratch);
    const int64_t T = on->tokens, H = on->heads;
    for (int64_t unit = first * H; unit < end * H; unit++) {
        const int64_t b = unit / H, h = unit % H;
        load(on, &w, qkv + (b * T * 3 * H + h) * HEAD);
        transpose(w.k, w.columns, w.k_transposed);
        scores_of(on, &w, w.q, w.k_transposed, w.scores);
        for (int64_t i = 0; i < T; i++) {
            real *row = w.scores + i * w.columns;
            const int64_t from = first_key(on, i), to = key_of(on, i + 1);
            const real most = largest(row, from, to), sum = exponentials(row, from, to, most);
            sums[unit * T + i] = most + log(sum);
            if (on->threshold) {
                const uint32_t element = element_number(on, &w, unit, i) + (uint32_t)from;
                dropout_factors(w.factors, to - from, element, on->threshold, on->seed);
                for (int64_t j = from; j < to; j++) row[j] *= w.factors[j - from];
            }
            const real scale = 1 / sum;
            for (int64_t j = from; j < to; j++) row[j] *= scale;
            clear_outside(row, from, to, w.columns);
        }
        gather(on, &w, w.scores, w.v, w.out);
        for (int64_t i = 0; i < T; i++) memcpy(out + ((b * T + i) * H + h) * HEAD, w.out + i * HEAD, sizeof(real) * HEAD);
    }
}

/* The backward pass for the same windows: dqkv from dout. */
void attention_backward(const Attention *on, const real *qkv, const real *out, const real *sums, const real *dout,
                        real *dqkv, int64_t first, int64_t end, real *scratch)
{
    const Work w = partition(on, scratch);
    const int64_t T = on->tokens, H = on->heads, stride = 3 * H * HEAD;
    const real scale = 1 / sqrt((real)HEAD);
    for (int64_t unit = first * H; unit < end * H; unit++) {
        const int64_t b = unit / H, h = unit % H;
        load(on, &w, qkv + (b * T * 3 * H + h) * HEAD);
        transpose(w.k, w.columns, w.k_transposed);
        transpose(w.v, w.columns, w.v_transposed);
        memset(w.dy, 0, sizeof(real) * w.rows * HEAD);
        for (int64_t i = 0; i < T; i++)
            memcpy(w.dy + i * HEAD, dout + ((b * T + i) * H + h) * HEAD, sizeof(real) * HEAD);
        scores_of(on, &w, w.q, w.k_transposed, w.scores);
        scores_of(on, &w, w.dy, w.v_transposed, w.slopes);
        for (int64_t i = 0; i < T; i++) {
            real *row = w.scores + i * w.columns, *slope = w.slopes + i * w.columns;
            const int64_t from = first_key(on, i), to = key_of(on, i + 1);
            const real *y = out + ((b * T + i) * H + h) * HEAD, *dy = w.dy + i * HEAD;
            vec products = splat(0);
            for (int c = 0; c < HEAD; c += LANES) products += LOAD(y + c) * LOAD(dy + c);
            const real mean = sum_of(products);
            exponentials(row, from, to, sums[unit * T + i]);
            if (on->threshold) {
                const uint32_t element = element_number(on, &w, unit, i) + (uint32_t)from;
                dropout_factors(w.factors, to - from, element, on->threshold, on->seed);
                for (int64_t j = from; j < to; j++) {
                    real p = row[j], factor = w.factors[j - from];
                    row[j] = p * factor, slope[j] = p * (slope[j] * factor - mean);
                }
            } else
                for (int64_t j = from; j < to; j++) slope[j] = row[j] * (slope[j] - mean);
            clear_outside(row, from, to, w.columns);
            clear_outside(slope, from, to, w.columns);
        }
        real *dx = dqkv + (b * T * 3 * H + h) * HEAD;
        gather(on, &w, w.slopes, w.k, w.out);
        for (int64_t t = 0; t < T; t++) {
            real *dq = dx + t * stride, *x = w.out + t * HEAD;
            for (int c = 0; c < HEAD; c++) dq[c] = scale * x[c];
            rotate(on, t, dq, -1);
        }
        scatter(on, &w, w.slopes, w.q, w.out);
        for (int64_t t = 0; t < T; t++) {
            real *dk = dx + t * stride + H * HEAD;
            if (t % on->dimensions == on->dimensions - 1) { memset(dk, 0, sizeof(real) * HEAD); continue; }
            memcpy(dk, w.out + key_of(on, t) * HEAD, sizeof(real) * HEAD);
            rotate(on, t, dk, -1);
        }
        scatter(on, &w, w.scores, w.dy, w.out);
        for (int64_t t = 0; t < T; t++) {
            real *dv = dx + t * stride + 2 * H * HEAD;
            if (t % on->dimensions == on->dimensions - 1) { memset(dv, 0, sizeof(real) * HEAD); continue; }
            memcpy(dv, w.out + key_of(on, t) * HEAD, sizeof(real) * HEAD);
        }
    }
}
