/* GPT.decode_step for CPUs: new tokens of many rows go through all layers, against a key-value cache.

   Compiled on first use by library.py for one architecture and one machine:
     EMBD, HEADS   channels and heads
     DOUBLE        doubles instead of floats, for tests
     BFLOAT16      weights, keys, values and what is multiplied with them are bfloat16; sums, softmax, norms and the
                   residual stream are floats

   The channels of queries, keys and values are interleaved over the heads: a lane belongs to one head (with bfloat16 it
   holds two of its channels), and attention needs no sums across a vector. Rows go through all layers in tiles that fit into the cache
   of a core. Products work on blocks of 6 rows by two vectors of columns. */

#define FITS_64 (EMBD % (128 / SIZE) == 0 && (64 / SIZE) % HEADS == 0)
#include "vectors.h"

#define PANEL (2 * LANES)    /* columns of a product at a time */
#define VECTORS (EMBD / LANES)
#define CHUNK (VECTORS % 8 == 0 ? 8 : VECTORS % 6 == 0 ? 6 : VECTORS % 4 == 0 ? 4 : 2) /* of a value, in registers */
#define BLOCK 6              /* rows of a product at a time */
#define QUERIES 8            /* queries that read a segment together */
#define HIDDEN (4 * EMBD)

#if EMBD % PANEL || LANES % HEADS || EMBD / HEADS % (2 * PAIRED)
#error "this architecture is computed by torch"
#endif

typedef struct {
    const real *tokens;      /* embedding table */
    const real *positions;   /* (positions, EMBD), added to it */
    const real *layers;      /* per layer the panels of four products: qkv, projection, and the two of the MLP */
    const real *heads;       /* per dimension the panels of its head */
    const real *rotations;   /* (transitions, 2, EMBD / 2) cosines and sines, or null */
    int64_t layer_count, dimensions, bins, prefix, period, value_residual;
} Model;                     /* the table of positions: `prefix` that come once, then a period that repeats */

typedef struct {
    stored *keys, *values;   /* (layers, slots, EMBD) */
    const int64_t *starts;   /* (segments, rows): first slot of each row in every segment */
    const int64_t *lengths;  /* (segments,): tokens of a row; in the last segment before this call */
    int64_t slots, segments, rows;
} Cache;

#define ROUND_UP(n) (((n) + PANEL - 1) / PANEL * PANEL)
#define PANELS(inputs, outputs) (((inputs) / PAIRED + 1) * (int64_t)ROUND_UP(outputs))

/* ---- products ---- */

enum { SET, ADD }; /* y = the product, y += the product */

INLINE void block(int m, const stored *x, int64_t inputs, const real *panel, real *y, int64_t stride, int mode)
{
    vec sums[BLOCK * 2];
    for (int i = 0; i < 2 * m; i++) sums[i] = LOAD(panel + i % 2 * LANES);
    multiply_stored(m, 2, x, inputs, panel + PANEL, PANEL, inputs / PAIRED, sums);
    for (int i = 0; i < m; i++, y += stride)
        for (int j = 0; j < 2; j++) {
            vec sum = sums[2 * i + j];
            if (mode == ADD) sum += LOAD(y + j * LANES);
            STORE(y + j * LANES, sum);
        }
}

/* y (rows, outputs): x (rows, inputs) times packed weights, whose first row is the bias */
INLINE void product(const stored *x, int64_t rows, int64_t inputs, const real *panels, int64_t outputs, real *y, int mode)
{
    int64_t stride = ROUND_UP(outputs), blocks = (rows + BLOCK - 1) / BLOCK;
    for (int64_t column = 0; column < stride; column += PANEL, panels += PANELS(inputs, PANEL))
        for (int64_t b = 0; b < blocks; b++) { /* blocks of nearly the same height */
            int64_t first = b * rows / blocks, m = (b + 1) * rows / blocks - first;
            const stored *a = x + first * inputs;
            real *out = y + first * stride + column;
            switch (m) {
            case 6: block(6, a, inputs, panels, out, stride, mode); break;
            case 5: block(5, a, inputs, panels, out, stride, mode); break;
            case 4: block(4, a, inputs, panels, out, stride, mode); break;
            case 3: block(3, a, inputs, panels, out, stride, mode); break;
            case 2: block(2, a, inputs, panels, out, stride, mode); break;
            default: block(1, a, inputs, panels, out, stride, mode);
            }
        }
}

/* layer norm without its weights, which are folded into the next product */
static void normalize(const real *x, int64_t rows, stored *y)
{
    for (int64_t r = 0; r < rows; r++) normalize_row(x + r * EMBD, EMBD, y + r * EMBD);
}

/* ---- attention ---- */

/* Scores are (keys, HEADS): a vector holds those of GROUP keys. */
#define GROUP (LANES / HEADS)

/* sums of the two halves of x and of y, in the halves of one vector; a half has those lanes whose bit `half` is equal */
INLINE vec add_halves(vec x, vec y, int half)
{
    ivec same, other;
    for (int l = 0; l < LANES; l++) {
        same[l] = l & half ? LANES + l : l;
        other[l] = l & half ? LANES + (l ^ half) : l ^ half;
    }
    return permute(x, y, same) + permute(x, y, other);
}

/* sets every lane to the sum, or to the largest, over all lanes of its head */
INLINE vec sum_per_head(vec v)
{
#define STEP(shift) if (HEADS <= shift && shift < LANES) v += rotated(v, shift);
    POWERS(STEP)
#undef STEP
    return v;
}
INLINE vec largest_per_head(vec v)
{
#define STEP(shift) if (HEADS <= shift && shift < LANES) v = larger(v, rotated(v, shift));
    POWERS(STEP)
#undef STEP
    return v;
}

INLINE vec spread(const real *weights) /* the weights of one key's heads, in all lanes */
{
    ivec from;
    for (int l = 0; l < LANES; l++) from[l] = l % HEADS;
    vec v = LOAD(weights);
    return permute(v, v, from);
}

/* scores of one query with GROUP keys, of which `count` are there, the others -infinity */
INLINE vec group_scores(const stored *query, const stored *keys, int count)
{
    vec sums[GROUP];
    for (int g = 0; g < GROUP; g++) sums[g] = splat(0);
    for (int e = 0; e < EMBD; e += PAIRED * LANES) {
        vec q = LOAD(query + e);
        for (int g = 0; g < GROUP; g++)
            if (g < count) sums[g] = add_products(sums[g], q, LOAD(keys + g * EMBD + e));
    }
#define STEP(n) if (2 * n <= GROUP) for (int g = 0; g < n; g++) sums[g] = add_halves(sums[g], sums[g + n], n * HEADS);
    POWERS(STEP)
#undef STEP
    const real scale = 1 / sqrt((real)(EMBD / HEADS));
    vec scores = sums[0] * scale;
    if (count == GROUP) return scores;
    ivec lanes;
    for (int l = 0; l < LANES; l++) lanes[l] = l;
    return choose((ivec)(lanes < count * HEADS), scores, splat(-INFINITY));
}

/* scores of one query with consecutive keys, (count, HEADS), with room for a vector behind them; returns the running
   maximum of each lane */
INLINE vec score(const stored *query, const stored *keys, int64_t count, real *scores, vec maximum)
{
    for (; count >= GROUP; count -= GROUP, keys += GROUP * EMBD, scores += LANES) {
        vec found = group_scores(query, keys, GROUP);
        maximum = larger(maximum, found);
        STORE(scores, found);
    }
    if (count > 0) {
        vec found = group_scores(query, keys, (int)count);
        maximum = larger(maximum, found);
        STORE(scores, found);
    }
    return maximum;
}

/* out += the weighted sum of consecutive values; with bfloat16 a chunk's odd channels follow its even ones */
INLINE void add_weighted(const real *weights, const stored *values, int64_t count, real *out)
{
    for (int first = 0; first < EMBD; first += CHUNK * LANES) {
        vec sums[CHUNK];
        for (int j = 0; j < CHUNK; j++) sums[j] = LOAD(out + first + j * LANES);
        for (int64_t i = 0; i < count; i++) {
            const stored *value = values + i * EMBD + first;
            vec w = spread(weights + i * HEADS);
#ifdef BFLOAT16
            for (int j = 0; j < CHUNK; j += 2) {
                vec pairs = LOAD(value + j * LANES);
                sums[j] += w * first_of(pairs), sums[j + 1] += w * second_of(pairs);
            }
#else
            for (int j = 0; j < CHUNK; j++) sums[j] += w * LOAD(value + j * LANES);
#endif
        }
        for (int j = 0; j < CHUNK; j++) STORE(out + first + j * LANES, sums[j]);
    }
}

/* a row of sums times a factor, stored in the channels' order; y may begin where the sums do */
INLINE void finish(const real *sums, vec factor, stored *y)
{
    for (int c = 0; c < EMBD; c += 2 * LANES) {
        vec first = LOAD(sums + c) * factor, second = LOAD(sums + c + LANES) * factor;
#ifdef BFLOAT16
        STORE(y + c, pairs_of(first, second));
#else
        STORE(y + c, first), STORE(y + c + LANES, second);
#endif
    }
}

INLINE void store_row(const real *x, stored *y) /* y may begin where x does */
{
    for (int c = 0; c < EMBD; c += LANES) store_stored(y + c, LOAD(x + c));
}

INLINE void rotate(real *x, const real *rotation)
{
    for (int c = 0; c < EMBD / 2; c++) {
        real cosine = rotation[c], sine = rotation[EMBD / 2 + c], a = x[c], b = x[EMBD / 2 + c];
        x[c] = a * cosine - b * sine, x[EMBD / 2 + c] = a * sine + b * cosine;
    }
}

/* qkv (rows, T, 3 EMBD) of new tokens -> the rows of `stored` (rows, T, EMBD) in out; `first` is the cache's number of the first row.
   Stores the keys and values of all tokens but value tokens. */
static void attend(const Model *model, const Cache *cache, int64_t layer, int64_t first, int64_t rows, int64_t T,
                   int64_t position, real *qkv, real *out, real *scores)
{
    const int64_t D = model->dimensions, last = cache->segments - 1, before = cache->lengths[last];
    stored *keys = cache->keys + layer * cache->slots * EMBD, *values = cache->values + layer * cache->slots * EMBD;
    int64_t past = 0;
    for (int64_t s = 0; s < last; s++) past += cache->lengths[s];
    const int64_t width = (past + before + T) * HEADS + LANES;

    for (int64_t r = 0; r < rows; r++) {
        int64_t slot = cache->starts[last * cache->rows + first + r] + before;
        for (int64_t t = 0; t < T; t++) {
            real *x = qkv + (r * T + t) * 3 * EMBD;
            if (model->rotations) {
                const real *rotation = model->rotations + (position + t) / D * EMBD;
                rotate(x, rotation), rotate(x + EMBD, rotation);
            }
            store_row(x, (stored *)x);
            if ((position + t) % D == D - 1) continue;
            store_row(x + EMBD, keys + slot * EMBD);
            store_row(x + 2 * EMBD, values + slot * EMBD);
            slot++;
        }
    }
    int64_t visible[T]; /* tokens of the last segment that each new token attends to */
    for (int64_t t = 0, n = before; t < T; t++) visible[t] = n += (position + t) % D != D - 1;

    for (int64_t begin = 0; begin < rows * T; begin += QUERIES) {
        int count = rows * T - begin < QUERIES ? rows * T - begin : QUERIES;
        vec maxima[QUERIES], totals[QUERIES];
        for (int j = 0; j < count; j++) maxima[j] = splat(-INFINITY);
        int64_t n = 0;
        for (int64_t s = 0; s <= last; n += cache->lengths[s], s++)
            for (int j = 0; j < count; j++) {
                int64_t query = begin + j, tokens = s < last ? cache->lengths[s] : visible[query % T];
                int64_t slot = cache->starts[s * cache->rows + first + query / T];
                real *s = scores + j * width + n * HEADS;
                maxima[j] = score((const stored *)(qkv + query * 3 * EMBD), keys + slot * EMBD, tokens, s, maxima[j]);
            }
        for (int j = 0; j < count; j++) {
            real *s = scores + j * width;
            const vec most = largest_per_head(maxima[j]);
            const int64_t size = (past + visible[(begin + j) % T]) * HEADS;
            vec sums = splat(0);
            STORE(s + size, splat(-INFINITY)); /* fills the last vector */
            for (int64_t i = 0; i < size; i += LANES) {
                vec e = exponential(LOAD(s + i) - most);
                STORE(s + i, e);
                sums += e;
            }
            totals[j] = sum_per_head(sums);
        }
        memset(out + begin * EMBD, 0, sizeof(real) * count * EMBD);
        n = 0;
        for (int64_t s = 0; s <= last; n += cache->lengths[s], s++)
            for (int j = 0; j < count; j++) {
                int64_t query = begin + j, tokens = s < last ? cache->lengths[s] : visible[query % T];
                int64_t slot = cache->starts[s * cache->rows + first + query / T];
                add_weighted(scores + j * width + n * HEADS, values + slot * EMBD, tokens, out + query * EMBD);
            }
        for (int j = 0; j < count; j++)
            finish(out + (begin + j) * EMBD, 1 / totals[j], (stored *)out + (begin + j) * EMBD);
    }
}

/* ---- the model ---- */

static void embed(const Model *model, const int64_t *tokens, int64_t rows, int64_t T, int64_t position, real *x)
{
    const int64_t D = model->dimensions, N = model->bins;
    for (int64_t r = 0; r < rows; r++)
        for (int64_t t = 0; t < T; t++, x += EMBD) {
            int64_t p = position + t, d = p % D, token = tokens[r * T + t], row = token == N ? D * N : d * N + token;
            if (d == D - 1 && !model->value_residual) row = d * N;
            int64_t index = p < model->prefix ? p : model->prefix + (p - model->prefix) % model->period;
            const real *a = model->tokens + row * EMBD, *b = model->positions + index * EMBD;
            for (int c = 0; c < EMBD; c += LANES) STORE(x + c, LOAD(a + c) + LOAD(b + c));
        }
}

/* size, in numbers, of the scratch memory of decode_step for tiles of `tile` tokens that attend to `keys` keys */
int64_t scratch_size(int64_t tile, int64_t keys) { return tile * (3 * EMBD + HIDDEN) + QUERIES * (keys * HEADS + LANES); }

/* columns of the logits, rounded up to whole panels */
int64_t padded(int64_t columns) { return ROUND_UP(columns); }

/* For the rows from `first` to `end`: tokens (rows, T), from `position` of their sequences on -> logits of the next token
   (rows, padded(bins + 1)). */
void decode_step(const Model *model, const Cache *cache, const int64_t *tokens, int64_t first, int64_t end, int64_t T,
            int64_t position, int64_t tile, real *scratch, real *logits)
{
    const int64_t step = tile / T > 1 ? tile / T : 1, columns = model->bins + 1;
    const real *head = model->heads + (position + T - 1) % model->dimensions * PANELS(EMBD, columns);
    real *x = scratch, *out = x + tile * EMBD, *hidden = out + 2 * tile * EMBD, *scores = hidden + tile * HIDDEN;
    stored *y = (stored *)out, *activated = (stored *)hidden;
    for (; first < end; first += step) {
        int64_t rows = end - first < step ? end - first : step, count = rows * T;
        embed(model, tokens + first * T, rows, T, position, x);
        const real *panels = model->layers;
        for (int64_t layer = 0; layer < model->layer_count; layer++) {
            normalize(x, count, y);
            product(y, count, EMBD, panels, 3 * EMBD, hidden, SET);
            panels += PANELS(EMBD, 3 * EMBD);
            attend(model, cache, layer, first, rows, T, position, hidden, out, scores);
            product(y, count, EMBD, panels, EMBD, x, ADD);
            panels += PANELS(EMBD, EMBD);
            normalize(x, count, y);
            product(y, count, EMBD, panels, HIDDEN, hidden, SET);
            for (int64_t i = 0; i < count * HIDDEN; i += LANES) store_stored(activated + i, gelu(LOAD(hidden + i)));
            panels += PANELS(EMBD, HIDDEN);
            product(activated, count, HIDDEN, panels, EMBD, x, ADD);
            panels += PANELS(HIDDEN, EMBD);
        }
        for (int64_t r = 0; r < rows; r++) normalize_row(x + (r * T + T - 1) * EMBD, EMBD, y + r * EMBD);
        product(y, rows, EMBD, head, columns, logits + first * ROUND_UP(columns), SET);
    }
}
