/* Products with int8 and int4 weights on a processor.

   W x = s_W Σ_g s_x,g Σ w₈ x₈              w₈ = round(W / s_W), x₈ = round(x / s_x,g), |·| ≤ 127
   W x = Σ_g s_x,g (s_W,g Σ (w₄ − 8) x₈ + z_g Σ x₈)       W = (w₄ − 8) s_W,g + z_g, w₄ in 0 … 15

   with s_x,g for each group of a row's inputs: a few inputs of a language model are a hundred times
   as large as the rest, which one scale for all would round away. Sums of whole numbers are exact,
   and everything else of a row is computed by the same instructions in the same order whatever
   other rows there are: a row's result is its own, to the bit.

   Weights lie as they are read: of 16 outputs 4 inputs each, which is what a vector of 64 bytes
   holds and what one instruction (AVX-512 VNNI) multiplies and adds up; without it the compiler
   makes of the same loop what the processor has. Weights are unsigned, which that instruction
   asks of one side: int8 ones are shifted by 128, and 128 Σ x₈ is taken off again.

   M rows, I inputs, O outputs, G groups of C inputs. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#ifdef _OPENMP
#include <omp.h>
#endif
#if defined(__AVX512VNNI__) && defined(__AVX512BW__)
#include <immintrin.h>
#define VNNI 1
#endif

#define INLINE static inline __attribute__((always_inline))
#define ONCE static __attribute__((noinline))
#define LANES 16
#define PAIR (2 * LANES)
#define MOST_AT_ONCE 8 /* rows that share what was read of the weights */

typedef int32_t Ints __attribute__((vector_size(64)));
typedef float Floats __attribute__((vector_size(64)));
typedef uint8_t Bytes __attribute__((vector_size(64)));
typedef uint16_t Halves __attribute__((vector_size(32)));
typedef uint32_t Words __attribute__((vector_size(64)));

/* A linear layer. Outputs are filled up to pairs of 16, inputs to whole groups. */
typedef struct {
  const uint8_t *numbers; /* int8: (O / 16, I / 4, 16, 4); int4: (O / 16, G, C / 8, 16, 4), of which
                             the low halves are the first C / 2 inputs of a group */
  const void *scales;     /* int8: float (O); int4: bf16 (O / 16, G, 2, 16), scales and offsets */
  const float *bias;      /* (O), or none */
  int64_t taken, inputs;  /* without what was filled up, and with it */
  int64_t outputs;        /* without what was filled up */
  int64_t group, bits;    /* inputs of a group; 8 or 4 */
} Matrix;

/* Quantised rows, each of a matrix's inputs. */
typedef struct {
  int8_t *numbers;
  float *scales;
  int32_t *sums;
} Rows;

INLINE Ints every(int32_t x) {
  return (Ints){x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x};
}

INLINE Floats every_float(float x) {
  return (Floats){x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x};
}

INLINE Bytes load(const uint8_t *at) {
  Bytes bytes;
  memcpy(&bytes, at, sizeof bytes);
  return bytes;
}

/* sum + w x over the four inputs of each output. */
INLINE Ints dot(Ints sum, Bytes w, const int8_t *x) {
#ifdef VNNI
  int32_t four;
  memcpy(&four, x, 4);
  return (Ints)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)w, _mm512_set1_epi32(four));
#else
  for (int o = 0; o < LANES; o++)
    for (int i = 0; i < 4; i++) sum[o] += (int32_t)w[4 * o + i] * (int32_t)x[i];
  return sum;
#endif
}

INLINE Floats multiply_add(Floats a, Floats b, Floats c) {
#ifdef VNNI
  return (Floats)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#else
  for (int o = 0; o < LANES; o++) c[o] = fmaf(a[o], b[o], c[o]);
  return c;
#endif
}

INLINE Floats floats(Ints x) { return __builtin_convertvector(x, Floats); }

INLINE Floats from_bf16(const uint16_t *at) {
  Halves halves;
  memcpy(&halves, at, sizeof halves);
  return (Floats)(__builtin_convertvector(halves, Words) << 16);
}

/* Quantise the inputs of a group. What is no number makes all of them none. */
INLINE void quantise_group(const float *restrict x, int8_t *restrict number, float *scale,
                           int32_t *total, const int64_t n) {
  float most = 0.0f, none = 0.0f;
#pragma omp simd reduction(max : most) reduction(+ : none)
  for (int64_t i = 0; i < n; i++) {
    float size = fabsf(x[i]);
    most = most > size ? most : size;
    none += x[i] * 0.0f;
  }
  most = most > 1e-30f ? most : 1e-30f;
  float factor = 127.0f / most;
  int32_t sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; i++) {
    int32_t value = (int32_t)rintf(x[i] * factor);
    value = value > 127 ? 127 : value < -127 ? -127 : value;
    number[i] = (int8_t)value;
    sum += value;
  }
  *scale = most / 127.0f + none;
  *total = sum;
}

/* Quantise a row, filled up with zeros. */
ONCE void quantise(const Matrix *w, const float *x, const Rows *rows, int64_t row) {
  int64_t group = w->group, groups = w->inputs / group;
  for (int64_t g = 0; g < groups; g++) {
    int8_t *number = rows->numbers + row * w->inputs + g * group;
    float *scale = rows->scales + row * groups + g;
    int32_t *total = rows->sums + row * groups + g;
    int64_t n = w->taken - g * group;
    n = n < group ? n : group;
    if (n == 32) /* known to the compiler, which else takes 0.2 µs longer */
      quantise_group(x + g * group, number, scale, total, 32);
    else if (n == 64)
      quantise_group(x + g * group, number, scale, total, 64);
    else
      quantise_group(x + g * group, number, scale, total, n);
    for (int64_t i = n; i < group; i++) number[i] = 0;
  }
}

/* Results of 16 outputs, from ``at`` on, go where they belong. */
INLINE void put(const Matrix *w, Floats y, float *to, int64_t at, int add) {
  int64_t n = w->outputs - at;
  n = n < LANES ? n : LANES;
  for (int64_t o = 0; o < n; o++) {
    float value = w->bias ? y[o] + w->bias[at + o] : y[o];
    to[at + o] = add ? to[at + o] + value : value;
  }
}

ONCE void put_8(const Matrix *w, Floats y, float *to, int64_t at, int add) {
  Floats scales;
  memcpy(&scales, (const float *)w->scales + at, sizeof scales);
  put(w, y * scales, to, at, add);
}

ONCE void put_4(const Matrix *w, Floats y, float *to, int64_t at, int add) {
  put(w, y, to, at, add);
}

/* A pair of 16 outputs of ``m`` rows, a constant: so all sums of a group are in registers. */
INLINE void tile_8(const Matrix *w, const Rows *rows, int64_t row, int64_t pair, float *y, int add,
                   const int m, const int64_t group) {
  const int64_t inputs = w->inputs, groups = inputs / group;
  const uint8_t *first = w->numbers + 2 * pair * LANES * inputs, *second = first + LANES * inputs;
  Floats results[MOST_AT_ONCE][2];
#pragma GCC unroll 8
  for (int r = 0; r < m; r++) results[r][0] = results[r][1] = every_float(0.0f);
  for (int64_t g = 0; g < groups; g++) {
    const int8_t *x = rows->numbers + row * inputs + g * group;
    const int32_t *x_sums = rows->sums + row * groups + g;
    const float *x_scales = rows->scales + row * groups + g;
    Ints sums[MOST_AT_ONCE][2];
#pragma GCC unroll 8
    for (int r = 0; r < m; r++) sums[r][0] = sums[r][1] = every(-128 * x_sums[r * groups]);
    for (int64_t i = 0; i < group; i += 4) {
      Bytes w_0 = load(first), w_1 = load(second);
      first += 4 * LANES;
      second += 4 * LANES;
#pragma GCC unroll 8
      for (int r = 0; r < m; r++) {
        sums[r][0] = dot(sums[r][0], w_0, x + r * inputs + i);
        sums[r][1] = dot(sums[r][1], w_1, x + r * inputs + i);
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < m; r++)
      for (int half = 0; half < 2; half++) {
        Floats scale = every_float(x_scales[r * groups]);
        results[r][half] = multiply_add(scale, floats(sums[r][half]), results[r][half]);
      }
  }
  for (int r = 0; r < m; r++)
    for (int half = 0; half < 2; half++)
      put_8(w, results[r][half], y + (row + r) * w->outputs, (2 * pair + half) * LANES, add);
}

INLINE void tile_4(const Matrix *w, const Rows *rows, int64_t row, int64_t block, float *y, int add,
                   const int m, const int64_t group) {
  const int64_t inputs = w->inputs, groups = inputs / group;
  const uint8_t *numbers = w->numbers + block * LANES * inputs / 2;
  const uint16_t *scales = (const uint16_t *)w->scales + block * groups * 2 * LANES;
  Floats results[MOST_AT_ONCE];
#pragma GCC unroll 8
  for (int r = 0; r < m; r++) results[r] = every_float(0.0f);
  for (int64_t g = 0; g < groups; g++) {
    const int8_t *x = rows->numbers + row * inputs + g * group;
    const int32_t *x_sums = rows->sums + row * groups + g;
    const float *x_scales = rows->scales + row * groups + g;
    Ints sums[MOST_AT_ONCE];
#pragma GCC unroll 8
    for (int r = 0; r < m; r++) sums[r] = every(-8 * x_sums[r * groups]);
    for (int64_t i = 0; i < group / 2; i += 4) {
      Bytes both = load(numbers);
      Bytes low = both & 15, high = both >> 4;
      numbers += 4 * LANES;
#pragma GCC unroll 8
      for (int r = 0; r < m; r++) {
        sums[r] = dot(sums[r], low, x + r * inputs + i);
        sums[r] = dot(sums[r], high, x + r * inputs + group / 2 + i);
      }
    }
    Floats scale = from_bf16(scales), offset = from_bf16(scales + LANES);
    scales += 2 * LANES;
#pragma GCC unroll 8
    for (int r = 0; r < m; r++) {
      Floats part = offset * every_float((float)x_sums[r * groups]);
      part = multiply_add(scale, floats(sums[r]), part);
      results[r] = multiply_add(every_float(x_scales[r * groups]), part, results[r]);
    }
  }
  for (int r = 0; r < m; r++)
    put_4(w, results[r], y + (row + r) * w->outputs, block * LANES, add);
}

INLINE void tile(const Matrix *w, const Rows *rows, int64_t row, int64_t pair, float *y, int add,
                 const int m) {
  if (w->bits == 8) {
    if (w->group == 64)
      tile_8(w, rows, row, pair, y, add, m, 64);
    else
      tile_8(w, rows, row, pair, y, add, m, w->group);
    return;
  }
  for (int64_t block = 2 * pair; block < 2 * pair + 2; block++) {
    if (w->group == 32)
      tile_4(w, rows, row, block, y, add, m, 32);
    else
      tile_4(w, rows, row, block, y, add, m, w->group);
  }
}

/* y = W x, or y += W x, of quantised rows; all threads of a team come here together. */
static void product(const Matrix *w, const Rows *rows, int64_t count, float *y, int add) {
  int64_t pairs = (w->outputs + PAIR - 1) / PAIR;
#pragma omp for schedule(static)
  for (int64_t pair = 0; pair < pairs; pair++)
    for (int64_t row = 0; row < count; row += MOST_AT_ONCE) {
      int64_t m = count - row;
      switch (m < MOST_AT_ONCE ? m : MOST_AT_ONCE) {
        case 1: tile(w, rows, row, pair, y, add, 1); break;
        case 2: tile(w, rows, row, pair, y, add, 2); break;
        case 3: tile(w, rows, row, pair, y, add, 3); break;
        case 4: tile(w, rows, row, pair, y, add, 4); break;
        case 5: tile(w, rows, row, pair, y, add, 5); break;
        case 6: tile(w, rows, row, pair, y, add, 6); break;
        case 7: tile(w, rows, row, pair, y, add, 7); break;
        default: tile(w, rows, row, pair, y, add, 8);
      }
    }
}

/* Memory for quantised rows of so many inputs; groups have 32 inputs or more. */
static int begin_rows(Rows *rows, int64_t count, int64_t inputs) {
  int64_t groups = inputs / 32 + 1;
  rows->numbers = malloc((size_t)(count * inputs));
  rows->scales = malloc(sizeof(float) * (size_t)(count * groups));
  rows->sums = malloc(sizeof(int32_t) * (size_t)(count * groups));
  return rows->numbers && rows->scales && rows->sums;
}

static void end_rows(Rows *rows) {
  free(rows->numbers);
  free(rows->scales);
  free(rows->sums);
}

/* y (M, O) = x (M, I) Wᵀ + b. Returns 0, or 1 without memory. */
int llmctl_multiply(const Matrix *w, const float *x, float *y, int64_t count, int threads) {
  Rows rows;
  int ready = begin_rows(&rows, count, w->inputs);
  if (ready) {
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(static)
      for (int64_t row = 0; row < count; row++) quantise(w, x + row * w->taken, &rows, row);
      product(w, &rows, count, y, 0);
    }
  }
  end_rows(&rows);
  return !ready;
}
