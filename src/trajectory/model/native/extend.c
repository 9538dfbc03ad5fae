/* One pass of the trajectory GPT over some new tokens of many rows, against a cache: GPT.extend for CPUs.

   Compiled on first use by library.py for one architecture and one machine:
     EMBD, HEADS   channels and heads
     DOUBLE        doubles instead of floats, for tests

   Channels of queries, keys and values are ordered dimension by dimension with all heads side by side, so that a vector
   holds every head (LANES / HEADS times) and attention needs no sum across a vector. Rows go through all layers in
   tiles that fit into the cache of a core; products work on blocks of 6 rows by two vectors of columns. */

#define FITS_64 (EMBD % (128 / SIZE) == 0 && (64 / SIZE) % HEADS == 0)
#include "vectors.h"

#define PANEL (2 * LANES)    /* columns of a product at a time */
#define VECTORS (EMBD / LANES)
#define CHUNK (VECTORS % 8 == 0 ? 8 : VECTORS % 6 == 0 ? 6 : VECTORS % 4 == 0 ? 4 : 2) /* of values in registers */
#define BLOCK 6              /* rows of a product at a time */
#define QUERIES 8            /* queries that go over a segment together */
#define HIDDEN (4 * EMBD)

#if EMBD % PANEL || LANES % HEADS
#error "this architecture is left to torch"
#endif

typedef struct {
    const real *tokens;      /* embedding table */
    const real *positions;   /* (positions, EMBD), added to it */
    const real *layers;      /* per layer the panels of four products: qkv, projection, and the two of the MLP */
    const real *heads;       /* per dimension the panels of its head */
    const real *rotations;   /* (transitions, 2, EMBD / 2) cosines and sines, or null */
    int64_t layer_count, dimensions, bins, lead, period, value_is_seen;
} Model;                     /* the table of positions: `lead` that come once, then a period */

typedef struct {
    real *keys, *values;     /* (layers, slots, EMBD) */
    const int64_t *starts;   /* (segments, rows): each row's first slot of every segment */
    const int64_t *lengths;  /* (segments,): tokens in it, of the last one before this call */
    int64_t slots, segments, rows;
} Cache;

#define ROUND_UP(n) (((n) + PANEL - 1) / PANEL * PANEL)
#define PANELS(inputs, outputs) (((inputs) + 1) * (int64_t)ROUND_UP(outputs))

/* ---- products ---- */

enum { KEEP, ADD }; /* y = the product, y += the product */

INLINE void block(int m, const real *x, int64_t inputs, const real *panel, real *y, int64_t stride, int then)
{
    vec sums[BLOCK][2];
    for (int i = 0; i < m; i++) sums[i][0] = LOAD(panel), sums[i][1] = LOAD(panel + LANES);
    for (int64_t k = 0; k < inputs; k++) {
        panel += PANEL;
        vec left = LOAD(panel), right = LOAD(panel + LANES);
        IN_REGISTER(left);
        IN_REGISTER(right);
        for (int i = 0; i < m; i++) {
            vec a = splat(x[i * inputs + k]);
            sums[i][0] += a * left, sums[i][1] += a * right;
        }
    }
    for (int i = 0; i < m; i++, y += stride)
        for (int j = 0; j < 2; j++) {
            vec sum = sums[i][j];
            if (then == ADD) sum += LOAD(y + j * LANES);
            STORE(y + j * LANES, sum);
        }
}

/* (rows, inputs) times packed weights, whose first row is the bias */
INLINE void product(const real *x, int64_t rows, int64_t inputs, const real *panels, int64_t outputs, real *y, int then)
{
    int64_t stride = ROUND_UP(outputs), blocks = (rows + BLOCK - 1) / BLOCK;
    for (int64_t column = 0; column < stride; column += PANEL, panels += (inputs + 1) * PANEL)
        for (int64_t b = 0; b < blocks; b++) { /* blocks of nearly the same height */
            int64_t first = b * rows / blocks, m = (b + 1) * rows / blocks - first;
            const real *a = x + first * inputs;
            real *out = y + first * stride + column;
            switch (m) {
            case 6: block(6, a, inputs, panels, out, stride, then); break;
            case 5: block(5, a, inputs, panels, out, stride, then); break;
            case 4: block(4, a, inputs, panels, out, stride, then); break;
            case 3: block(3, a, inputs, panels, out, stride, then); break;
            case 2: block(2, a, inputs, panels, out, stride, then); break;
            default: block(1, a, inputs, panels, out, stride, then);
            }
        }
}

/* layer norm without its weights, which the product behind it holds */
static void normalise(const real *x, int64_t rows, real *y)
{
    for (int64_t r = 0; r < rows; r++, x += EMBD, y += EMBD) {
        vec sum = splat(0), squares = splat(0);
        for (int c = 0; c < EMBD; c += LANES) sum += LOAD(x + c);
        real mean = 0, variance = 0;
        for (int l = 0; l < LANES; l++) mean += sum[l];
        mean /= EMBD;
        for (int c = 0; c < EMBD; c += LANES) {
            vec d = LOAD(x + c) - mean;
            squares += d * d;
        }
        for (int l = 0; l < LANES; l++) variance += squares[l];
        real scale = 1 / sqrt(variance / EMBD + (real)1e-5);
        for (int c = 0; c < EMBD; c += LANES) STORE(y + c, (LOAD(x + c) - mean) * scale);
    }
}

/* ---- attention ---- */

/* every lane the sum over all lanes of its head */
INLINE vec over_lanes(vec v)
{
    for (int shift = HEADS; shift < LANES; shift *= 2) {
        vec turned;
        for (int l = 0; l < LANES; l++) turned[l] = v[(l + shift) % LANES];
        v += turned;
    }
    return v;
}

/* scores of one query with consecutive keys, (count, LANES), and their largest */
INLINE vec score(const real *query, const real *keys, int64_t count, real *scores, vec most)
{
    const vec scale = splat(1 / sqrt((real)(EMBD / HEADS)));
    int64_t i = 0;
    for (; i + 4 <= count; i += 4, keys += 4 * EMBD) {
        vec a = splat(0), b = a, c = a, d = a;
        for (int e = 0; e < EMBD; e += LANES) {
            vec q = LOAD(query + e);
            a += q * LOAD(keys + e), b += q * LOAD(keys + EMBD + e);
            c += q * LOAD(keys + 2 * EMBD + e), d += q * LOAD(keys + 3 * EMBD + e);
        }
        vec four[4] = {a, b, c, d};
        for (int j = 0; j < 4; j++) {
            four[j] = over_lanes(four[j]) * scale;
            most = larger(most, four[j]);
            STORE(scores + (i + j) * LANES, four[j]);
        }
    }
    for (; i < count; i++, keys += EMBD) {
        vec a = splat(0);
        for (int e = 0; e < EMBD; e += LANES) a += LOAD(query + e) * LOAD(keys + e);
        a = over_lanes(a) * scale;
        most = larger(most, a);
        STORE(scores + i * LANES, a);
    }
    return most;
}

/* out += the sum of consecutive values by their weights */
INLINE void mix(const real *weights, const real *values, int64_t count, real *out)
{
    for (int first = 0; first < EMBD; first += CHUNK * LANES) {
        vec sums[CHUNK];
        for (int j = 0; j < CHUNK; j++) sums[j] = LOAD(out + first + j * LANES);
        for (int64_t i = 0; i < count; i++) {
            vec w = LOAD(weights + i * LANES);
            for (int j = 0; j < CHUNK; j++) sums[j] += w * LOAD(values + i * EMBD + first + j * LANES);
        }
        for (int j = 0; j < CHUNK; j++) STORE(out + first + j * LANES, sums[j]);
    }
}

INLINE void rotate(real *x, const real *rotation)
{
    for (int c = 0; c < EMBD / 2; c++) {
        real cosine = rotation[c], sine = rotation[EMBD / 2 + c], a = x[c], b = x[EMBD / 2 + c];
        x[c] = a * cosine - b * sine, x[EMBD / 2 + c] = a * sine + b * cosine;
    }
}

/* (rows, T, 3 EMBD) queries, keys and values of new tokens, the first row being `first` of the cache's ->
   (rows, T, EMBD), with keys and values of all but value tokens stored */
static void attend(const Model *model, const Cache *cache, int64_t layer, int64_t first, int64_t rows, int64_t T,
                   int64_t position, real *qkv, real *out, real *scores)
{
    const int64_t D = model->dimensions, last = cache->segments - 1, before = cache->lengths[last];
    real *keys = cache->keys + layer * cache->slots * EMBD, *values = cache->values + layer * cache->slots * EMBD;
    int64_t past = 0;
    for (int64_t s = 0; s < last; s++) past += cache->lengths[s];
    const int64_t width = (past + before + T) * LANES;

    for (int64_t r = 0; r < rows; r++) {
        int64_t slot = cache->starts[last * cache->rows + first + r] + before;
        for (int64_t t = 0; t < T; t++) {
            real *x = qkv + (r * T + t) * 3 * EMBD;
            if (model->rotations) {
                const real *rotation = model->rotations + (position + t) / D * EMBD;
                rotate(x, rotation), rotate(x + EMBD, rotation);
            }
            if ((position + t) % D == D - 1) continue;
            memcpy(keys + slot * EMBD, x + EMBD, sizeof(real) * EMBD);
            memcpy(values + slot * EMBD, x + 2 * EMBD, sizeof(real) * EMBD);
            slot++;
        }
    }
    int64_t seen[T]; /* tokens of the last segment that each new one sees: those before it and itself */
    for (int64_t t = 0, n = before; t < T; t++) seen[t] = n += (position + t) % D != D - 1;

    for (int64_t begin = 0; begin < rows * T; begin += QUERIES) {
        int count = rows * T - begin < QUERIES ? rows * T - begin : QUERIES;
        vec most[QUERIES], totals[QUERIES];
        for (int j = 0; j < count; j++) most[j] = splat(-INFINITY);
        int64_t n = 0;
        for (int64_t s = 0; s <= last; n += cache->lengths[s], s++)
            for (int j = 0; j < count; j++) {
                int64_t query = begin + j, tokens = s < last ? cache->lengths[s] : seen[query % T];
                int64_t slot = cache->starts[s * cache->rows + first + query / T];
                most[j] = score(qkv + query * 3 * EMBD, keys + slot * EMBD, tokens, scores + j * width + n * LANES, most[j]);
            }
        for (int j = 0; j < count; j++) {
            real *s = scores + j * width;
            totals[j] = splat(0);
            for (int64_t i = 0; i < past + seen[(begin + j) % T]; i++) {
                vec e = exponential(LOAD(s + i * LANES) - most[j]);
                STORE(s + i * LANES, e);
                totals[j] += e;
            }
        }
        memset(out + begin * EMBD, 0, sizeof(real) * count * EMBD);
        n = 0;
        for (int64_t s = 0; s <= last; n += cache->lengths[s], s++)
            for (int j = 0; j < count; j++) {
                int64_t query = begin + j, tokens = s < last ? cache->lengths[s] : seen[query % T];
                int64_t slot = cache->starts[s * cache->rows + first + query / T];
                mix(scores + j * width + n * LANES, values + slot * EMBD, tokens, out + query * EMBD);
            }
        for (int j = 0; j < count; j++) {
            real *y = out + (begin + j) * EMBD;
            vec scale = 1 / totals[j];
            for (int c = 0; c < EMBD; c += LANES) STORE(y + c, LOAD(y + c) * scale);
        }
    }
}

/* ---- the model ---- */

static void embed(const Model *model, const int64_t *tokens, int64_t rows, int64_t T, int64_t position, real *x)
{
    const int64_t D = model->dimensions, N = model->bins;
    for (int64_t r = 0; r < rows; r++)
        for (int64_t t = 0; t < T; t++, x += EMBD) {
            int64_t p = position + t, d = p % D, token = tokens[r * T + t], row = token == N ? D * N : d * N + token;
            if (d == D - 1 && !model->value_is_seen) row = d * N;
            int64_t place = p < model->lead ? p : model->lead + (p - model->lead) % model->period;
            const real *a = model->tokens + row * EMBD, *b = model->positions + place * EMBD;
            for (int c = 0; c < EMBD; c += LANES) STORE(x + c, LOAD(a + c) + LOAD(b + c));
        }
}

/* numbers of scratch memory that `extend` needs for tiles of `tile` tokens and rows that see `seen` tokens */
int64_t scratch_size(int64_t tile, int64_t seen) { return tile * (3 * EMBD + HIDDEN) + QUERIES * seen * LANES; }

/* the columns that logits have room for */
int64_t padded(int64_t columns) { return ROUND_UP(columns); }

/* Rows first to end: (rows, T) tokens from `position` on -> (rows, padded(bins + 1)) logits of the token after the last. */
void extend(const Model *model, const Cache *cache, const int64_t *tokens, int64_t first, int64_t end, int64_t T,
            int64_t position, int64_t tile, real *scratch, real *logits)
{
    const int64_t step = tile / T > 1 ? tile / T : 1, columns = model->bins + 1;
    const real *head = model->heads + (position + T - 1) % model->dimensions * PANELS(EMBD, columns);
    real *x = scratch, *y = x + tile * EMBD, *wide = y + 2 * tile * EMBD, *scores = wide + tile * HIDDEN;
    for (; first < end; first += step) {
        int64_t rows = end - first < step ? end - first : step, count = rows * T;
        embed(model, tokens + first * T, rows, T, position, x);
        const real *panels = model->layers;
        for (int64_t layer = 0; layer < model->layer_count; layer++) {
            normalise(x, count, y);
            product(y, count, EMBD, panels, 3 * EMBD, wide, KEEP);
            panels += PANELS(EMBD, 3 * EMBD);
            attend(model, cache, layer, first, rows, T, position, wide, y, scores);
            product(y, count, EMBD, panels, EMBD, x, ADD);
            panels += PANELS(EMBD, EMBD);
            normalise(x, count, y);
            product(y, count, EMBD, panels, HIDDEN, wide, KEEP);
            for (int64_t i = 0; i < count * HIDDEN; i += LANES) STORE(wide + i, gelu(LOAD(wide + i)));
            panels += PANELS(EMBD, HIDDEN);
            product(wide, count, HIDDEN, panels, EMBD, x, ADD);
            panels += PANELS(HIDDEN, EMBD);
        }
        for (int64_t r = 0; r < rows; r++) memcpy(y + (rows + r) * EMBD, x + (r * T + T - 1) * EMBD, sizeof(real) * EMBD);
        normalise(y + rows * EMBD, rows, y);
        product(y, rows, EMBD, head, columns, logits + first * ROUND_UP(columns), KEEP);
    }
}
