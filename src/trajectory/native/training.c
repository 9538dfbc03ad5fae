/* The operations of training between its matrix products: attention, layer norm, GELU and dropout, forward and backward.

   Compiled on first use by library.py:
     HEAD          channels of a head
     DOUBLE        doubles instead of floats, for tests
     BFLOAT16      activations between matrix products are bfloat16 in memory; the residual stream and all arithmetic
                   are floats

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

/* ---- elements ---- */

/* the first `count` lanes at an address; a load fills the others with zeros */
#define SOME_LANES(name, type, load, store)                                                                            \
    INLINE vec load_some_##name(const type *p, int64_t count)                                                          \
    {                                                                                                                  \
        if (count >= LANES) return load(p);                                                                            \
        type lanes[LANES] = {0};                                                                                       \
        memcpy(lanes, p, sizeof(type) * count);                                                                        \
        return load(lanes);                                                                                            \
    }                                                                                                                  \
    INLINE void store_some_##name(type *p, vec v, int64_t count)                                                       \
    {                                                                                                                  \
        type lanes[LANES];                                                                                             \
        store(count >= LANES ? p : lanes, v);                                                                          \
        if (count < LANES) memcpy(p, lanes, sizeof(type) * count);                                                     \
    }
SOME_LANES(real, real, LOAD, STORE)
SOME_LANES(stored, stored, load_stored, store_stored)

typedef uint32_t words __attribute__((vector_size(4 * LANES)));

INLINE words hashed(words x) /* "lowbias32" of the hash prospector by C. Wellons, 2018 */
{
    x ^= x >> 16, x *= 0x7feb352dU;
    x ^= x >> 15, x *= 0x846ca68bU;
    return x ^ x >> 16;
}

/* the factors of dropout for the elements from `first` on: 0, or what keeps the mean */
INLINE vec dropout_factors(uint32_t first, uint32_t threshold, const uint32_t *seed)
{
    words element;
    for (int l = 0; l < LANES; l++) element[l] = l;
    words x = hashed(hashed(element + (first + seed[0])) ^ seed[1]);
    const real scale = (real)(4294967296.0 / (4294967296.0 - threshold));
    return __builtin_convertvector(x >= threshold, vec) * -scale; /* a comparison that holds is -1 */
}

/* elements first to end: y = x with dropout */
void dropout(const real *x, real *y, int64_t first, int64_t end, uint32_t threshold, const uint32_t *seed)
{
    for (int64_t count; (count = end - first) > 0; first += LANES) {
        vec v = load_some_real(x + first, count) * dropout_factors((uint32_t)first, threshold, seed);
        store_some_real(y + first, v, count);
    }
}

/* elements first to end: y = residual + x with dropout */
void add_dropout(const stored *x, const real *residual, real *y, int64_t first, int64_t end, uint32_t threshold,
                 const uint32_t *seed)
{
    for (int64_t count; (count = end - first) > 0; first += LANES) {
        vec v = load_some_stored(x + first, count);
        if (threshold) v *= dropout_factors((uint32_t)first, threshold, seed);
        store_some_real(y + first, load_some_real(residual + first, count) + v, count);
    }
}

/* elements first to end: dx of `add_dropout` from dy */
void add_dropout_backward(const real *dy, stored *dx, int64_t first, int64_t end, uint32_t threshold,
                          const uint32_t *seed)
{
    for (int64_t count; (count = end - first) > 0; first += LANES) {
        vec v = load_some_real(dy + first, count);
        if (threshold) v *= dropout_factors((uint32_t)first, threshold, seed);
        store_some_stored(dx + first, v, count);
    }
}

/* elements first to end: y = GELU(x), or dy times its derivative unless dy is null; y may be dy */
void activate(const stored *x, const stored *dy, stored *y, int64_t first, int64_t end)
{
    for (int64_t count; (count = end - first) > 0; first += LANES) {
        vec v = load_some_stored(x + first, count);
        if (dy) v = load_some_stored(dy + first, count) * gelu_slope(v);
        else v = gelu(v);
        store_some_stored(y + first, v, count);
    }
}

/* ---- layer norm ---- */

/* rows first to end of (rows, size): y = layer norm of x */
void layer_norm(const real *x, const real *weight, const real *bias, stored *y, int64_t size, int64_t first, int64_t end)
{
    for (int64_t r = first; r < end; r++) {
        const real *row = x + r * size;
        real mean, scale = moments(row, size, &mean);
        for (int64_t c = 0; c < size; c += LANES)
            store_stored(y + r * size + c, (LOAD(row + c) - mean) * scale * LOAD(weight + c) + LOAD(bias + c));
    }
}

/* for the same rows dx from dy; adds to dweight and dbias (size) */
void layer_norm_backward(const real *x, const real *weight, const stored *dy, real *dx, real *dweight, real *dbias,
                         int64_t size, int64_t first, int64_t end)
{
    for (int64_t r = first; r < end; r++) {
        const real *row = x + r * size;
        const stored *slope = dy + r * size;
        real mean, scale = moments(row, size, &mean);
        vec sums = splat(0), products = splat(0);
        for (int64_t c = 0; c < size; c += LANES) {
            vec normal = (LOAD(row + c) - mean) * scale, d = load_stored(slope + c), g = d * LOAD(weight + c);
            STORE(dweight + c, LOAD(dweight + c) + d * normal);
            STORE(dbias + c, LOAD(dbias + c) + d);
            sums += g;
            products += g * normal;
        }
        const real g_mean = sum_of(sums) / size, product_mean = sum_of(products) / size;
        for (int64_t c = 0; c < size; c += LANES) {
            vec normal = (LOAD(row + c) - mean) * scale, g = load_stored(slope + c) * LOAD(weight + c);
            STORE(dx + r * size + c, scale * (g - g_mean - normal * product_mean));
        }
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

#define ROUND_UP(n, unit) (((n) + (unit) - 1) / (unit) * (unit))

typedef struct {
    int64_t rows, keys, columns;            /* queries, padded; keys; keys, padded */
    real *q, *k, *v, *k_transposed, *v_transposed, *scores; /* (rows, HEAD), (columns, HEAD), transposed */
    real *dy, *slopes, *out;                /* (rows, HEAD); (rows, columns) as scores; (rows or columns, HEAD) */
    real *scales;                           /* (rows): 1 / sum of the exponentials */
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
    w.scores = w.out + columns, w.slopes = w.scores + most * w.columns, w.scales = w.slopes + most * w.columns;
    return w;
}

/* size, in numbers, of the scratch memory of a thread */
int64_t attention_scratch(const Attention *on)
{
    Work w = partition(on, 0);
    return (w.scales - w.q) + w.rows;
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

INLINE void read_head(const stored *x, real *y)
{
    for (int c = 0; c < HEAD; c += LANES) STORE(y + c, load_stored(x + c));
}
INLINE void write_head(const real *x, real scale, stored *y)
{
    for (int c = 0; c < HEAD; c += LANES) store_stored(y + c, scale * LOAD(x + c));
}

/* loads the scaled queries, the keys and the values of one window and head */
static void load(const Attention *on, const Work *w, const stored *qkv)
{
    const int64_t stride = 3 * on->heads * HEAD;
    const real scale = 1 / sqrt((real)HEAD);
    memset(w->q, 0, sizeof(real) * w->rows * HEAD);
    memset(w->k, 0, sizeof(real) * w->columns * HEAD);
    memset(w->v, 0, sizeof(real) * w->columns * HEAD);
    for (int64_t t = 0; t < on->tokens; t++) {
        const stored *x = qkv + t * stride;
        real *q = w->q + t * HEAD;
        for (int c = 0; c < HEAD; c += LANES) STORE(q + c, scale * load_stored(x + c));
        rotate(on, t, q, 1);
        if (t % on->dimensions == on->dimensions - 1) continue;
        real *k = w->k + key_of(on, t) * HEAD, *v = w->v + key_of(on, t) * HEAD;
        read_head(x + on->heads * HEAD, k);
        read_head(x + 2 * on->heads * HEAD, v);
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

/* zeros beside a row's columns from `first` to `end`, as far as blocks of products read that hold one of its columns:
   a block begins with the keys of its first query, up to BLOCK + D before those of its last */
INLINE void clear_beside(const Attention *on, real *row, int64_t first, int64_t end, int64_t columns)
{
    const int64_t before = ROUND_UP(BLOCK + on->dimensions, LANES), behind = ROUND_UP(BLOCK, LANES);
    for (int64_t c = larger_of(0, first - before); c < first; c += LANES) STORE(row + c, splat(0));
    for (int64_t c = end; c < smaller_of(columns, end + behind); c += LANES) STORE(row + c, splat(0));
}

/* `begin` and `past`: a row's columns from `from` to `to`, rounded to whole vectors */
#define WHOLE_VECTORS(from, to) const int64_t begin = (from) / LANES * LANES, past = ROUND_UP(to, LANES)

/* For the windows from `first` to `end`: qkv (batch, tokens, 3, heads, HEAD) -> out (batch, tokens, heads, HEAD), and
   the logarithm of every softmax's sum (batch, heads, tokens). */
void attention(const Attention *on, const stored *qkv, stored *out, real *sums, int64_t first, int64_t end, real *scratch)
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
            WHOLE_VECTORS(from, to);
            vec mosts = splat(-INFINITY), totals = splat(0);
            for (int64_t c = begin; c < past; c += LANES)
                mosts = larger(mosts, within(LOAD(row + c), c, from, to, mosts));
            const real most = largest_of(mosts);
            for (int64_t c = begin; c < past; c += LANES) {
                vec e = exponential(within(LOAD(row + c), c, from, to, splat(most)) - most);
                e = within(e, c, from, to, splat(0));
                totals += e;
                if (on->threshold)
                    e *= dropout_factors(element_number(on, &w, unit, i) + (uint32_t)c, on->threshold, on->seed);
                STORE(row + c, e);
            }
            const real total = sum_of(totals);
            sums[unit * T + i] = most + log(total);
            w.scales[i] = 1 / total;
            clear_beside(on, row, begin, past, w.columns);
        }
        gather(on, &w, w.scores, w.v, w.out);
        for (int64_t i = 0; i < T; i++) write_head(w.out + i * HEAD, w.scales[i], out + ((b * T + i) * H + h) * HEAD);
    }
}

/* The backward pass for the same windows: dqkv from dout. */
void attention_backward(const Attention *on, const stored *qkv, const stored *out, const real *sums, const stored *dout,
                        stored *dqkv, int64_t first, int64_t end, real *scratch)
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
        for (int64_t i = 0; i < T; i++) read_head(dout + ((b * T + i) * H + h) * HEAD, w.dy + i * HEAD);
        scores_of(on, &w, w.q, w.k_transposed, w.scores);
        scores_of(on, &w, w.dy, w.v_transposed, w.slopes);
        for (int64_t i = 0; i < T; i++) {
            real *row = w.scores + i * w.columns, *slope = w.slopes + i * w.columns;
            const int64_t from = first_key(on, i), to = key_of(on, i + 1);
            const stored *y = out + ((b * T + i) * H + h) * HEAD;
            const real *dy = w.dy + i * HEAD;
            vec products = splat(0);
            for (int c = 0; c < HEAD; c += LANES) products += load_stored(y + c) * LOAD(dy + c);
            const real mean = sum_of(products);
            const real sum = sums[unit * T + i];
            WHOLE_VECTORS(from, to);
            for (int64_t c = begin; c < past; c += LANES) {
                vec p = exponential(within(LOAD(row + c), c, from, to, splat(sum)) - sum);
                p = within(p, c, from, to, splat(0));
                vec kept = p, ds = within(LOAD(slope + c), c, from, to, splat(0));
                if (on->threshold) {
                    vec factors = dropout_factors(element_number(on, &w, unit, i) + (uint32_t)c, on->threshold, on->seed);
                    kept *= factors, ds *= factors;
                }
                STORE(row + c, kept);
                STORE(slope + c, p * (ds - mean));
            }
            clear_beside(on, row, begin, past, w.columns);
            clear_beside(on, slope, begin, past, w.columns);
        }
        stored *dx = dqkv + (b * T * 3 * H + h) * HEAD;
        gather(on, &w, w.slopes, w.k, w.out);
        for (int64_t t = 0; t < T; t++) {
            rotate(on, t, w.out + t * HEAD, -1);
            write_head(w.out + t * HEAD, scale, dx + t * stride);
        }
        scatter(on, &w, w.slopes, w.q, w.out);
        for (int64_t t = 0; t < T; t++) {
            stored *dk = dx + t * stride + H * HEAD;
            if (t % on->dimensions == on->dimensions - 1) { memset(dk, 0, sizeof(stored) * HEAD); continue; }
            rotate(on, t, w.out + key_of(on, t) * HEAD, -1);
            write_head(w.out + key_of(on, t) * HEAD, 1, dk);
        }
        scatter(on, &w, w.scores, w.dy, w.out);
        for (int64_t t = 0; t < T; t++) {
            stored *dv = dx + t * stride + 2 * H * HEAD;
            if (t % on->dimensions == on->dimensions - 1) { memset(dv, 0, sizeof(stored) * HEAD); continue; }
            write_head(w.out + key_of(on, t) * HEAD, 1, dv);
        }
    }
}
