/* Vectors of floats or doubles, as wide as the machine and the architecture allow, by the extension of GCC and Clang.

   Define before including: DOUBLE for doubles; BFLOAT16 for floats that are bfloat16 in memory (`stored`); FITS_64,
   whether vectors of 64 bytes suit the architecture. */

#include <math.h>
#include <stdint.h>
#include <string.h>

#ifdef DOUBLE
typedef double real;
typedef int64_t integer;
#define SIZE 8
#else
typedef float real;
typedef int32_t integer;
#define SIZE 4
#endif

#if defined(__AVX512F__) && FITS_64
#define BYTES 64
#define REGISTERS 24         /* for the sums of a product; the others hold its factors */
#else
#define BYTES 32
#define REGISTERS 12
#endif
#define LANES (BYTES / SIZE)

typedef real vec __attribute__((vector_size(BYTES), aligned(SIZE), may_alias)); /* loads need no alignment */
typedef integer ivec __attribute__((vector_size(BYTES), aligned(SIZE), may_alias));
#define LOAD(p) (*(const vec *)(p))
#define STORE(p, v) (*(vec *)(p) = (v))
#define INLINE static inline __attribute__((always_inline))

#if defined(__x86_64__) && BYTES == 32 && defined(__AVX__)
#define IN_REGISTER(a) __asm__("" : "+x"(a)) /* or GCC would load it again for every use */
#else
#define IN_REGISTER(a) (void)0
#endif

INLINE vec splat(real x) { return x - (vec){0}; } /* adding would turn -0 into 0 */
INLINE vec choose(ivec mask, vec a, vec b) { return (vec)((mask & (ivec)a) | (~mask & (ivec)b)); }
INLINE vec larger(vec a, vec b) { return choose((ivec)(a > b), a, b); }

#ifdef BFLOAT16
#ifdef __AVX512BF16__
#include <immintrin.h>
#endif
typedef uint16_t stored; /* the upper half of a float */
typedef uint32_t uvec __attribute__((vector_size(BYTES), aligned(SIZE), may_alias));
typedef uint16_t halves __attribute__((vector_size(BYTES / 2), aligned(2), may_alias));
INLINE vec load_stored(const stored *p) { return (vec)(__builtin_convertvector(*(const halves *)p, uvec) << 16); }
INLINE uvec rounded(vec v) /* to the nearest bfloat16, in the upper halves; ties to even; NaN stays NaN */
{
    uvec bits = (uvec)v;
    vec nearest = (vec)(bits + 0x7fff + (bits >> 16 & 1)), nan = (vec)(bits | 0x400000);
    return (uvec)choose((ivec)(v == v), nearest, nan);
}
INLINE void store_stored(stored *p, vec v)
{
#if defined(__AVX512BF16__) && defined(__AVX512DQ__) && BYTES == 64
    if (!_mm512_fpclass_ps_mask((__m512)v, 0x20)) { /* none below 2^-126, which Intel's instruction takes as 0 */
        *(halves *)p = (halves)_mm512_cvtneps_pbh((__m512)v);
        return;
    }
#endif
    *(halves *)p = __builtin_convertvector(rounded(v) >> 16, halves);
}

/* a vector of pairs of bfloat16, as floats: the first of each, the second of each */
INLINE vec first_of(vec pairs) { return (vec)((uvec)pairs << 16); }
INLINE vec second_of(vec pairs) { return (vec)((uvec)pairs & 0xffff0000); }
INLINE vec pairs_of(vec first, vec second) { return (vec)(rounded(first) >> 16 | (rounded(second) & 0xffff0000)); }
INLINE vec add_products(vec sum, vec a, vec b) /* sum + the products of both elements of each pair */
{
#if defined(__AVX512BF16__) && BYTES == 64
    return (vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
#else
    return sum + first_of(a) * first_of(b) + second_of(a) * second_of(b);
#endif
}
#define PAIRED 2 /* numbers of `stored` in a lane */
#else
typedef real stored;
#define load_stored(p) LOAD(p)
#define store_stored(p, v) STORE(p, v)
INLINE vec add_products(vec sum, vec a, vec b) { return sum + a * b; }
#define PAIRED 1
#endif

INLINE vec permute(vec x, vec y, ivec from) /* lane l is lane from[l] of x and y, side by side */
{
#ifdef __clang__
    vec found;
    for (int l = 0; l < LANES; l++) found[l] = from[l] < LANES ? x[from[l]] : y[from[l] - LANES];
    return found;
#else
    return __builtin_shuffle(x, y, from);
#endif
}

INLINE vec rotated(vec x, int shift) /* lane l is lane l + shift */
{
    ivec from;
    for (int l = 0; l < LANES; l++) from[l] = (l + shift) % LANES;
    return permute(x, x, from);
}

/* for every power of two below the most lanes: a loop would make the permutations at run time */
#define POWERS(step) step(8) step(4) step(2) step(1)

INLINE real sum_of(vec v)
{
#define STEP(shift) if (shift < LANES) v += rotated(v, shift);
    POWERS(STEP)
#undef STEP
    return v[0];
}
INLINE real largest_of(vec v)
{
#define STEP(shift) if (shift < LANES) v = larger(v, rotated(v, shift));
    POWERS(STEP)
#undef STEP
    return v[0];
}

#ifdef DOUBLE
INLINE vec exponential(vec x) { for (int l = 0; l < LANES; l++) x[l] = exp(x[l]); return x; }
/* for x >= 0: the upper tail of the standard normal distribution at x, given exp(-x x / 2) */
INLINE vec upper_tail(vec x, vec e)
{
    (void)e;
    for (int l = 0; l < LANES; l++) x[l] = 0.5 * erfc(x[l] * M_SQRT1_2);
    return x;
}
#else
/* for x <= 0: 2^k times the Taylor series of the remainder, exact but for the last bit or two */
INLINE vec exponential(vec x)
{
    x = larger(x, splat(-87.0f));
    ivec k = __builtin_convertvector(x * 1.44269504f - 0.5f, ivec);
    vec n = __builtin_convertvector(k, vec), r = x - n * 0.693359375f + n * 2.12194440e-4f;
    vec y = 1 + r * (1 + r * (0.5f + r * (1 / 6.f + r * (1 / 24.f + r * (1 / 120.f + r * (1 / 720.f + r * (1 / 5040.f)))))));
    return (vec)((ivec)y + (k << 23));
}
/* for x >= 0: the upper tail of the standard normal distribution at x, given e = exp(-x x / 2), with an error below
   1.5e-7 (Abramowitz and Stegun 7.1.26) */
INLINE vec upper_tail(vec x, vec e)
{
    vec t = 1 / (1 + x * (0.3275911f * 0.70710678f));
    return 0.5f * e * t *
           (0.254829592f + t * (-0.284496736f + t * (1.421413741f + t * (-1.453152027f + t * 1.061405429f))));
}
#endif

/* GELU: x Phi(x), where Phi is the standard normal distribution function */
INLINE vec gelu(vec x)
{
    vec z = larger(x, -x);
    return larger(x, splat(0)) - z * upper_tail(z, exponential(z * z * (real)-0.5));
}

/* the derivative of GELU: Phi(x) + x phi(x) */
INLINE vec gelu_slope(vec x)
{
    vec z = larger(x, -x), e = exponential(z * z * (real)-0.5), tail = upper_tail(z, e);
    return choose((ivec)(x > splat(0)), 1 - tail, tail) + x * e * (real)0.3989422804014327;
}

/* sums (m, n vectors) += a (m, k) times b (k, n vectors), with their strides; m and n must be constants, and the sums
   local, so that they stay in registers */
INLINE void multiply(int m, int n, const real *a, int64_t a_row, int64_t a_column, const real *b, int64_t b_row,
                     int64_t k, vec *sums)
{
    for (; k > 0; k--, a += a_column, b += b_row) {
        vec right[2];
        for (int j = 0; j < n; j++) {
            right[j] = LOAD(b + j * LANES);
            IN_REGISTER(right[j]);
        }
        for (int i = 0; i < m; i++) {
            vec left = splat(a[i * a_row]);
            for (int j = 0; j < n; j++) sums[i * n + j] += left * right[j];
        }
    }
}

/* the same for a (m, PAIRED k) and b (k, n vectors) of `stored`, of which a lane of b holds PAIRED rows */
INLINE void multiply_stored(int m, int n, const stored *a, int64_t a_row, const real *b, int64_t b_row, int64_t k,
                            vec *sums)
{
    for (; k > 0; k--, a += PAIRED, b += b_row) {
        vec right[2];
        for (int j = 0; j < n; j++) {
            right[j] = LOAD(b + j * LANES);
            IN_REGISTER(right[j]);
        }
        for (int i = 0; i < m; i++) {
            integer bits;
            memcpy(&bits, a + i * a_row, SIZE);
            vec left = (vec)((ivec){0} + bits);
            for (int j = 0; j < n; j++) sums[i * n + j] = add_products(sums[i * n + j], left, right[j]);
        }
    }
}

/* mean and 1 / standard deviation of a row, whose size is a multiple of LANES */
INLINE real moments(const real *x, int64_t size, real *mean)
{
    vec sum = splat(0), squares = splat(0);
    for (int64_t c = 0; c < size; c += LANES) sum += LOAD(x + c);
    *mean = sum_of(sum) / size;
    for (int64_t c = 0; c < size; c += LANES) {
        vec d = LOAD(x + c) - *mean;
        squares += d * d;
    }
    return 1 / sqrt(sum_of(squares) / size + (real)1e-5);
}

/* layer norm of one row, without weights, whose size is a multiple of LANES; returns 1 / standard deviation */
INLINE real normalize_row(const real *x, int64_t size, stored *y)
{
    real mean, scale = moments(x, size, &mean);
    for (int64_t c = 0; c < size; c += LANES) store_stored(y + c, (LOAD(x + c) - mean) * scale);
    return scale;
}
