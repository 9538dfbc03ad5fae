/* Updates of the critics, as `ImplicitQLearning.update` and `ReBRACLearning.update` make them with torch.

   Compiled on first use by library.py:
     DOUBLE        doubles instead of floats, for tests

   One member of an ensemble is computed after the other, so that its weights and activations stay in the core's cache.
   Products of the hidden layers work on blocks of rows by two vectors of columns; those of the inputs and outputs,
   which may be narrow, on vectors along the hidden layer. */

#define FITS_64 1
#include "vectors.h"

#define BLOCK (REGISTERS / 2)               /* rows of a product at a time */

/* K multilayer perceptrons of one shape, with ReLU between the layers */
typedef struct {
    int64_t members, layers, norm;          /* norm: whether a layer norm without weights follows each ReLU */
    const int64_t *sizes;                   /* (layers + 1,): inputs, hidden layers (multiples of LANES), outputs */
    real **values, **averages, **squares, **targets; /* per layer weights (K, in, out), then per layer biases (K, out):
                                               parameters, Adam's moments, and the target network's parameters */
} Network;

typedef struct {
    int64_t batch;
    const real *inputs, *next_observations; /* of T transitions: (T, in) of the advantage and of V */
    const real *rewards, *discounts, *returns; /* (T,) */
    double advantage_scale, expectile, tau; /* advantage_scale: from advantages to values */
} Problem;

/* ---- products ---- */

/* y (m, n LANES) = a (m, k) times b (k, n LANES), with their strides; plus the bias and through ReLU with one */
INLINE void block(int m, int n, const real *a, int64_t a_row, int64_t a_column, const real *b, int64_t b_row, int64_t k,
                  const real *bias, real *y, int64_t y_row)
{
    vec sums[2 * BLOCK];
    for (int i = 0; i < m; i++)
        for (int j = 0; j < n; j++) sums[i * n + j] = bias ? LOAD(bias + j * LANES) : splat(0);
    multiply(m, n, a, a_row, a_column, b, b_row, k, sums);
    for (int i = 0; i < m; i++)
        for (int j = 0; j < n; j++)
            STORE(y + i * y_row + j * LANES, bias ? larger(sums[i * n + j], splat(0)) : sums[i * n + j]);
}

INLINE void blocks(int n, const real *a, int64_t a_row, int64_t a_column, int64_t rows, const real *b, int64_t b_row,
                   int64_t k, const real *bias, real *y, int64_t y_row)
{
    for (; rows >= BLOCK; rows -= BLOCK, a += BLOCK * a_row, y += BLOCK * y_row)
        block(BLOCK, n, a, a_row, a_column, b, b_row, k, bias, y, y_row);
    for (int m = BLOCK / 2; m > 0; m = m > 2 ? m / 2 : m - 1) /* 6, 3, 1 of 12, or 3, 1 of 6 */
        for (; rows >= m; rows -= m, a += m * a_row, y += m * y_row)
            switch (m) {
            case 6: block(6, n, a, a_row, a_column, b, b_row, k, bias, y, y_row); break;
            case 3: block(3, n, a, a_row, a_column, b, b_row, k, bias, y, y_row); break;
            default: block(1, n, a, a_row, a_column, b, b_row, k, bias, y, y_row);
            }
}

/* y (rows, columns) = a (rows, k) times b (k, columns), where columns is a multiple of LANES */
static void product(const real *a, int64_t a_row, int64_t a_column, int64_t rows, const real *b, int64_t k,
                    const real *bias, int64_t columns, real *y)
{
    int64_t c = 0;
    for (; c + 2 * LANES <= columns; c += 2 * LANES)
        blocks(2, a, a_row, a_column, rows, b + c, columns, k, bias ? bias + c : 0, y + c, columns);
    if (c < columns) blocks(1, a, a_row, a_column, rows, b + c, columns, k, bias ? bias + c : 0, y + c, columns);
}

/* y (rows, outputs) = a (rows, k) times b (outputs, k), transposed, plus the bias; k is a multiple of LANES */
static void dots(const real *a, int64_t rows, const real *b, int64_t outputs, int64_t k, const real *bias, real *y)
{
    for (int64_t i = 0; i < rows; i++, a += k, y += outputs)
        for (int64_t j = 0; j < outputs; j++) {
            vec sum = splat(0);
            for (int64_t c = 0; c < k; c += LANES) sum += LOAD(a + c) * LOAD(b + j * k + c);
            y[j] = sum_of(sum) + (bias ? bias[j] : 0);
        }
}

static void transpose(const real *x, int64_t rows, int64_t columns, real *y)
{
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < columns; c++) y[c * rows + r] = x[r * columns + c];
}

/* ---- what a forward pass keeps ---- */

/* numbers kept of a hidden layer: what ReLU gives, and with a norm also what that gives and its scales */
INLINE int64_t kept(const Network *net, int64_t size, int64_t rows) { return rows * (net->norm ? 2 * size + 1 : size); }

/* of a member */
static int64_t kept_by_member(const Network *net, int64_t rows)
{
    int64_t sum = 0;
    for (int64_t l = 1; l < net->layers; l++) sum += kept(net, net->sizes[l], rows);
    return sum;
}

static int64_t widest(const Network *net)
{
    int64_t most = 0;
    for (int64_t l = 0; l <= net->layers; l++) most = net->sizes[l] > most ? net->sizes[l] : most;
    return most;
}

/* numbers in parameter p of a member: weights of all layers, then biases */
INLINE int64_t count(const Network *net, int64_t p)
{
    const int64_t l = p % net->layers, outputs = net->sizes[l + 1];
    return p < net->layers ? net->sizes[l] * outputs : outputs;
}

/* layer norm of the rows of x; `scales` are the reciprocals of their standard deviations */
static void normalize(const real *x, int64_t rows, int64_t size, real *y, real *scales)
{
    for (int64_t r = 0; r < rows; r++) scales[r] = normalize_row(x + r * size, size, y + r * size);
}

/* dx of `normalize` in place of dy, where y is what it gave */
static void normalize_backward(real *dy, const real *y, const real *scales, int64_t rows, int64_t size)
{
    for (int64_t r = 0; r < rows; r++, dy += size, y += size) {
        vec sum = splat(0), products = splat(0);
        for (int64_t c = 0; c < size; c += LANES) sum += LOAD(dy + c), products += LOAD(dy + c) * LOAD(y + c);
        const real mean = sum_of(sum) / size, slope = sum_of(products) / size;
        for (int64_t c = 0; c < size; c += LANES) STORE(dy + c, (LOAD(dy + c) - mean - LOAD(y + c) * slope) * scales[r]);
    }
}

/* numbers of scratch for `backward` */
INLINE int64_t scratch_size(int64_t widest, int64_t rows) { return 2 * widest * (rows + widest); }

/* ---- passes ---- */

/* one member, with parameters `values`: x (rows, in) -> y (rows, outputs), and `keep` for `backward` */
static void forward(const Network *net, real *const *values, int64_t member, const real *x, int64_t rows, real *keep,
                    real *scratch, real *y)
{
    const int64_t *sizes = net->sizes, last = net->layers - 1;
    for (int64_t l = 0; l < last; l++) {
        const int64_t m = sizes[l], n = sizes[l + 1];
        product(x, m, 1, rows, values[l] + member * m * n, m, values[net->layers + l] + member * n, n, keep);
        x = keep, keep += rows * n;
        if (!net->norm) continue;
        normalize(x, rows, n, keep, keep + rows * n);
        x = keep, keep += rows * (n + 1);
    }
    const int64_t size = sizes[last], outputs = sizes[net->layers];
    const real *w = values[last] + member * size * outputs;
    if (outputs > 1) transpose(w, size, outputs, scratch), w = scratch;
    dots(x, rows, w, outputs, size, values[net->layers + last] + member * outputs, y);
}

/* one member: dy (rows, outputs) -> the gradients of its parameters, if any are to be kept, and dx (rows, in - from) of
   the inputs from column `from` on, if it is not null */
static void backward(const Network *net, int64_t member, const real *x, int64_t rows, const real *keep, const real *dy,
                     real *const *gradients, int64_t from, real *dx, real *scratch)
{
    const int64_t *sizes = net->sizes, last = net->layers - 1, size = sizes[last], outputs = sizes[net->layers];
    real *slopes = scratch, *next = slopes + rows * widest(net), *transposed = next + rows * widest(net);
    const real *out = keep + kept_by_member(net, rows); /* the end of what the member kept */
    const real *h = out - (net->norm ? rows * (size + 1) : rows * size), *w = net->values[last] + member * size * outputs;
    real *dw = transposed + widest(net) * widest(net); /* transposed, as the weights are here */
    if (outputs > 1) transpose(w, size, outputs, transposed), w = transposed;
    memset(slopes, 0, sizeof(real) * rows * size);
    memset(dw, 0, sizeof(real) * size * outputs);
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < outputs; j++) {
            const real d = dy[i * outputs + j];
            for (int64_t c = 0; c < size; c += LANES) {
                STORE(dw + j * size + c, LOAD(dw + j * size + c) + d * LOAD(h + i * size + c));
                STORE(slopes + i * size + c, LOAD(slopes + i * size + c) + d * LOAD(w + j * size + c));
            }
        }
    if (gradients) {
        transpose(dw, outputs, size, gradients[last]);
        real *db = gradients[net->layers + last];
        memset(db, 0, sizeof(real) * outputs);
        for (int64_t i = 0; i < rows * outputs; i++) db[i % outputs] += dy[i];
    }
    for (int64_t l = last - 1; l >= 0; l--) { /* slopes (rows, n) of what follows hidden layer l */
        const int64_t m = sizes[l], n = sizes[l + 1];
        out -= kept(net, n, rows);
        if (net->norm) normalize_backward(slopes, out + rows * n, out + 2 * rows * n, rows, n);
        real *bias = gradients ? gradients[net->layers + l] : transposed; /* which is not needed yet */
        memset(bias, 0, sizeof(real) * n);
        for (int64_t i = 0; i < rows; i++)
            for (int64_t c = 0; c < n; c += LANES) {
                vec s = choose((ivec)(LOAD(out + i * n + c) > splat(0)), LOAD(slopes + i * n + c), splat(0));
                STORE(slopes + i * n + c, s);
                STORE(bias + c, LOAD(bias + c) + s);
            }
        const real *in = l == 0 ? x : out - (net->norm ? rows * (m + 1) : rows * m);
        if (gradients) product(in, 1, m, m, slopes, rows, 0, n, gradients[l]);
        if (l == 0) {
            if (dx) dots(slopes, rows, net->values[0] + (member * m + from) * n, m - from, n, 0, dx);
            break;
        }
        transpose(net->values[l] + member * m * n, m, n, transposed);
        product(slopes, n, 1, rows, transposed, n, 0, m, next);
        real *swap = slopes;
        slopes = next, next = swap;
    }
}

/* Adam of one member's parameters (Kingma and Ba 2015, as torch computes it), then the soft update of its target */
static void step(const Network *net, int64_t member, real *const *gradients, double rate, int64_t number, double tau)
{
    const double beta = 0.9, beta_squares = 0.999;
    const real size = rate / (1 - pow(beta, number)), scale = 1 / sqrt(1 - pow(beta_squares, number));
    for (int64_t p = 0; p < 2 * net->layers; p++) {
        const int64_t n = count(net, p), first = member * n;
        const real *g = gradients[p];
        real *value = net->values[p] + first, *average = net->averages[p] + first, *square = net->squares[p] + first,
             *target = net->targets[p] + first;
        for (int64_t i = 0; i < n; i++) {
            average[i] += (real)(1 - beta) * (g[i] - average[i]);
            square[i] = (real)beta_squares * square[i] + (real)(1 - beta_squares) * g[i] * g[i];
            value[i] -= size * average[i] / ((real)sqrt(square[i]) * scale + (real)1e-8);
            target[i] += (real)tau * (value[i] - target[i]);
        }
    }
}

/* ---- updates ---- */

#define MAX_LAYERS 32

int64_t critic_lanes(void) { return LANES; }
int64_t critic_max_layers(void) { return MAX_LAYERS; }

typedef struct {
    real *x, *observations;                 /* (batch, in) and (2 batch, in): those before and those after a step */
    real *v, *error, *v_target, *online;    /* of the target network, (2 batch,); TD errors; of the trained one */
    real *advantages, *dy, *keep, *work;    /* (K, batch); slopes of the loss; for `forward` and `backward` */
    real *gradients[2 * MAX_LAYERS];       /* of one member */
} Buffers;

static int64_t partition(const Problem *of, const Network *v, const Network *advantage, Buffers *to, real *memory)
{
    const int64_t B = of->batch, most = widest(v) > widest(advantage) ? widest(v) : widest(advantage);
    const int64_t both = kept_by_member(v, 2 * B), each = kept_by_member(advantage, B);
    int64_t sizes[10] = {B * advantage->sizes[0], 2 * B * v->sizes[0], 2 * B, B, B, advantage->members * B, B, B,
                         both > each ? both : each, scratch_size(most, B)};
    real *start = memory, **fields[10] = {&to->x, &to->observations, &to->v, &to->error, &to->v_target, &to->advantages,
                                          &to->online, &to->dy, &to->keep, &to->work};
    for (int i = 0; i < 10; i++) *fields[i] = memory, memory += sizes[i];
    for (int64_t p = 0; p < 2 * advantage->layers; p++) {
        const int64_t a = count(advantage, p), b = count(v, p);
        to->gradients[p] = memory, memory += a > b ? a : b;
    }
    return memory - start;
}

/* size, in numbers, of the memory that `critic_updates` needs */
int64_t critic_memory(const Problem *of, const Network *v, const Network *advantage)
{
    Buffers unused;
    return partition(of, v, advantage, &unused, 0);
}

/* one batch of rows: inputs, and observations followed by next observations */
static void gather(const Problem *of, int64_t inputs, int64_t observations, const int64_t *rows, const Buffers *to)
{
    for (int64_t i = 0; i < of->batch; i++) {
        const real *x = of->inputs + rows[i] * inputs;
        memcpy(to->x + i * inputs, x, sizeof(real) * inputs);
        memcpy(to->observations + i * observations, x, sizeof(real) * observations);
        memcpy(to->observations + (of->batch + i) * observations, of->next_observations + rows[i] * observations,
               sizeof(real) * observations);
    }
}

/* `count` updates, of which the first has this number, counted from 0. Of each: its rows (count, batch), its learning
   rate, and the weight of TD targets against returns. Of the last one: q_values (batch,), and losses, the means of
   squared errors of the advantages and of V. */
void critic_updates(const Problem *of, const Network *v, const Network *advantage, int64_t number, int64_t count,
                    const int64_t *rows, const double *rates, const double *td_weights, real *memory, real *q_values,
                    double *losses)
{
    const int64_t B = of->batch, K = advantage->members;
    Buffers use;
    partition(of, v, advantage, &use, memory);
    for (int64_t u = 0; u < count; u++, rows += B) {
        const real td_weight = td_weights[u], scale = of->advantage_scale;
        double advantage_loss = 0, v_loss = 0;
        gather(of, advantage->sizes[0], v->sizes[0], rows, &use);
        forward(v, v->targets, 0, use.observations, 2 * B, use.keep, use.work, use.v);
        for (int64_t i = 0; i < B; i++) {
            const real value = of->rewards[rows[i]] + of->discounts[rows[i]] * use.v[B + i];
            use.error[i] = (value - use.v[i]) / scale;
            use.v_target[i] = of->returns[rows[i]] + td_weight * (value - of->returns[rows[i]]);
        }
        for (int64_t k = 0; k < K; k++) {
            real *a = use.advantages + k * B;
            forward(advantage, advantage->values, k, use.x, B, use.keep, use.work, a);
            for (int64_t i = 0; i < B; i++) {
                const real d = a[i] - use.error[i];
                use.dy[i] = 2 * d / B;
                advantage_loss += (double)d * d;
            }
            backward(advantage, k, use.x, B, use.keep, use.dy, use.gradients, 0, 0, use.work);
            step(advantage, k, use.gradients, rates[u], 1 + number + u, of->tau);
        }
        forward(v, v->values, 0, use.observations, B, use.keep, use.work, use.online);
        for (int64_t i = 0; i < B; i++) {
            real smallest = use.advantages[i];
            for (int64_t k = 1; k < K; k++)
                if (use.advantages[k * B + i] < smallest) smallest = use.advantages[k * B + i];
            const real weight = smallest > 0 ? of->expectile : 1 - of->expectile, d = use.online[i] - use.v_target[i];
            use.dy[i] = 2 * weight * d / B;
            v_loss += (double)weight * d * d;
            q_values[i] = use.v[i] + scale * smallest;
        }
        backward(v, 0, use.observations, B, use.keep, use.dy, use.gradients, 0, 0, use.work);
        step(v, 0, use.gradients, rates[u], 1 + number + u, of->tau);
        losses[0] = advantage_loss / (K * B), losses[1] = v_loss / B;
    }
}

/* ---- ReBRAC ---- */

typedef struct {
    int64_t batch;
    const real *inputs, *next_observations, *next_actions; /* of T transitions: (T, in) of Q and of the policy, (T, A) */
    const real *rewards, *discounts;        /* (T,) */
    double actor_penalty, critic_penalty, tau;
    int64_t policy_freq;
} PolicyProblem;

typedef struct {
    real *x, *next_x, *observations;        /* (batch, in) of Q, before and after a step, and of the policy */
    real *actions, *slopes, *q_values, *each, *target, *dy; /* (batch, A) twice; (batch,) smallest, one member's, ... */
    int64_t *smallest;                      /* (batch,) the member that has the smallest Q */
    real *policy_keep, *keep, *work, *gradients[2 * MAX_LAYERS];
} PolicyBuffers;

static int64_t policy_partition(const PolicyProblem *of, const Network *q, const Network *policy, PolicyBuffers *to,
                                real *memory)
{
    const int64_t B = of->batch, in = q->sizes[0], actions = policy->sizes[policy->layers];
    const int64_t most = widest(q) > widest(policy) ? widest(q) : widest(policy);
    const int64_t sizes[12] = {B * in, B * in, B * policy->sizes[0], B * actions, B * actions, B, B, B, B,
                               kept_by_member(policy, B), q->members * kept_by_member(q, B), scratch_size(most, B)};
    real *start = memory, **fields[12] = {&to->x, &to->next_x, &to->observations, &to->actions, &to->slopes,
                                          &to->q_values, &to->each, &to->target, &to->dy, &to->policy_keep, &to->keep,
                                          &to->work};
    to->smallest = (int64_t *)memory, memory += B * (int64_t)(sizeof(int64_t) / sizeof(real));
    for (int i = 0; i < 12; i++) *fields[i] = memory, memory += sizes[i];
    for (int64_t p = 0; p < 2 * q->layers; p++) {
        const int64_t a = count(q, p), b = count(policy, p);
        to->gradients[p] = memory, memory += a > b ? a : b;
    }
    return memory - start;
}

/* size, in numbers, of the memory that `policy_updates` needs */
int64_t policy_memory(const PolicyProblem *of, const Network *q, const Network *policy)
{
    PolicyBuffers unused;
    return policy_partition(of, q, policy, &unused, 0);
}

/* the smallest Q of x (batch, in) and the member that has it; what each member keeps is for `backward` */
static void smallest_q(const Network *q, real *const *values, const real *x, int64_t rows, const PolicyBuffers *use)
{
    for (int64_t k = 0; k < q->members; k++) {
        forward(q, values, k, x, rows, use->keep + k * kept_by_member(q, rows), use->work, use->each);
        for (int64_t i = 0; i < rows; i++)
            if (k == 0 || use->each[i] < use->q_values[i]) use->q_values[i] = use->each[i], use->smallest[i] = k;
    }
}

/* `count` updates of Q, of which the first has this number, counted from 0, and every `policy_freq`-th also of the
   policy and the targets. Of each: its rows (count, batch), learning rate and noise (count, batch, A). Of the last
   one: q_values (batch,), and losses, the mean of Q's squared errors and of the policy's distances (if there is an
   update of it). */
void policy_updates(const PolicyProblem *of, const Network *q, const Network *policy, int64_t number, int64_t count,
                    const int64_t *rows, const double *rates, const real *noise, real *memory, real *q_values,
                    double *losses)
{
    const int64_t B = of->batch, K = q->members, in = q->sizes[0], seen = policy->sizes[0], A = in - seen;
    PolicyBuffers use;
    policy_partition(of, q, policy, &use, memory);
    for (int64_t u = number; u < number + count; u++, rows += B, rates++, noise += B * A) {
        const int improves = u % of->policy_freq == 0;
        for (int64_t i = 0; i < B; i++) {
            memcpy(use.x + i * in, of->inputs + rows[i] * in, sizeof(real) * in);
            memcpy(use.observations + i * seen, of->next_observations + rows[i] * seen, sizeof(real) * seen);
        }
        forward(policy, policy->targets, 0, use.observations, B, use.policy_keep, use.work, use.actions);
        for (int64_t i = 0; i < B; i++) {
            real *next = use.next_x + i * in, distance = 0;
            memcpy(next, use.observations + i * seen, sizeof(real) * seen);
            for (int64_t j = 0; j < A; j++) {
                real a = (real)tanh(use.actions[i * A + j]) + noise[i * A + j];
                a = a < -1 ? -1 : a > 1 ? 1 : a;
                const real d = a - of->next_actions[rows[i] * A + j];
                next[seen + j] = a, distance += d * d;
            }
            use.target[i] = (real)of->critic_penalty * distance;
        }
        smallest_q(q, q->targets, use.next_x, B, &use);
        for (int64_t i = 0; i < B; i++)
            use.target[i] = of->rewards[rows[i]] + of->discounts[rows[i]] * (use.q_values[i] - use.target[i]);
        double loss = 0;
        for (int64_t k = 0; k < K; k++) {
            forward(q, q->values, k, use.x, B, use.keep, use.work, use.each);
            for (int64_t i = 0; i < B; i++) {
                const real d = use.each[i] - use.target[i];
                use.dy[i] = 2 * d / (K * B);
                loss += (double)d * d;
                if (k == 0 || use.each[i] < q_values[i]) q_values[i] = use.each[i];
            }
            backward(q, k, use.x, B, use.keep, use.dy, use.gradients, 0, 0, use.work);
            step(q, k, use.gradients, *rates, u + 1, improves ? of->tau : 0);
        }
        losses[0] = loss / (K * B);
        if (!improves) continue;
        for (int64_t i = 0; i < B; i++) memcpy(use.observations + i * seen, use.x + i * in, sizeof(real) * seen);
        forward(policy, policy->values, 0, use.observations, B, use.policy_keep, use.work, use.actions);
        double distance = 0, size = 0;
        for (int64_t i = 0; i < B; i++)
            for (int64_t j = 0; j < A; j++) {
                real *a = use.actions + i * A + j, *data = use.x + i * in + seen + j;
                *a = (real)tanh(*a);
                const real d = *a - *data;
                use.slopes[i * A + j] = (real)(2 * of->actor_penalty / B) * d;
                distance += (double)d * d;
                *data = *a;                 /* Q of the policy's actions */
            }
        smallest_q(q, q->values, use.x, B, &use);
        for (int64_t i = 0; i < B; i++) size += fabs(use.q_values[i]);
        for (int64_t k = 0; k < K; k++) {
            for (int64_t i = 0; i < B; i++) use.dy[i] = use.smallest[i] == k ? (real)(-1 / size) : 0;
            backward(q, k, use.x, B, use.keep + k * kept_by_member(q, B), use.dy, 0, seen, use.next_x, use.work);
            for (int64_t i = 0; i < B * A; i++) use.slopes[i] += use.next_x[i];
        }
        for (int64_t i = 0; i < B * A; i++) use.slopes[i] *= 1 - use.actions[i] * use.actions[i];
        backward(policy, 0, use.observations, B, use.policy_keep, use.slopes, use.gradients, 0, 0, use.work);
        step(policy, 0, use.gradients, *rates, u / of->policy_freq + 1, of->tau);
        losses[1] = distance / B;
    }
}
