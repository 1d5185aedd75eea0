/* The next tokens of a Llama and its kin, from embeddings to what the output layer takes.

     x = x + attention(norm(x));  x = x + W₃(silu(x W₁) ⊙ x W₂)      (Touvron et al. 2023)

   A row is a token of any text: what it attends to is its own text's, up to itself. Threads meet
   after each part of a layer; within one each has rows, outputs or heads of its own.

   R rows, D width, N heads, K key/value heads, H head width, S slots, F feed-forward width,
   L layers. */

#include "products.h"

typedef struct {
  const float *norm_1, *norm_2;       /* (D) */
  const float *query_norm, *key_norm; /* (H), or none */
  Matrix query_key_value, output, gate_up, contract;
  int64_t is_turned; /* whether positions turn queries and keys */
} Layer;

typedef struct {
  const Layer *layers;
  const float *norm;            /* (D), behind all layers */
  const float *cosines, *sines; /* (positions, H / 2) */
  int64_t num_layers, width, heads, kv_heads, head_size, inner;
  int64_t window; /* tokens that each attends to, itself the last of them; 0: all before it */
  float epsilon, scale;
} Model;

/* The next tokens of one text: its tables (L, K, S, H), and the slot of the first of them. */
typedef struct {
  float *keys, *values;
  int64_t slots, first, tokens;
} Part;

/* One token: its text's tables, and its slot. */
typedef struct {
  float *keys, *values;
  int64_t slots, slot;
} Token;

/* Below −87.3 eˣ is 0, near enough; a NaN stays one. */
INLINE float exponential(float x) {
  x = x < -87.3f ? -87.3f : x;
  x = x > 88.0f ? 88.0f : x;
  float n = rintf(x * 1.44269504f);
  float r = x - n * 0.693359375f + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  int32_t bits = ((int32_t)n + 127) << 23;
  float power;
  memcpy(&power, &bits, 4);
  return p * power;
}

/* y = x / √(mean(x²) + ε) ⊙ g */
ONCE void rms_norm(const float *x, const float *gain, float epsilon, int64_t n, float *y) {
  float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; i++) sum += x[i] * x[i];
  float factor = 1.0f / sqrtf(sum / (float)n + epsilon);
#pragma omp simd
  for (int64_t i = 0; i < n; i++) y[i] = x[i] * factor * gain[i];
}

/* gate = silu(gate) ⊙ up */
ONCE void gate_with(float *gate, const float *up, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; i++) gate[i] = gate[i] / (1.0f + exponential(-gate[i])) * up[i];
}

/* The pairs (xᵢ, xᵢ₊ₕ) of a head's halves turned by their angles. */
ONCE void turn(float *x, const float *cosines, const float *sines, int64_t half) {
#pragma omp simd
  for (int64_t i = 0; i < half; i++) {
    float a = x[i], b = x[i + half];
    x[i] = a * cosines[i] - b * sines[i];
    x[i + half] = b * cosines[i] + a * sines[i];
  }
}

/* Queries and keys know their positions, and keys and values lie in their table. */
static void place(const Model *model, const Layer *layer, int64_t number, float *heads,
                  const Token *token) {
  int64_t H = model->head_size, N = model->heads, K = model->kv_heads;
  for (int64_t head = 0; head < N + K; head++) {
    float *own = heads + head * H;
    const float *gain = head < N ? layer->query_norm : layer->key_norm;
    if (gain) rms_norm(own, gain, model->epsilon, H, own);
    int64_t angles = token->slot * (H / 2);
    if (layer->is_turned) turn(own, model->cosines + angles, model->sines + angles, H / 2);
  }
  for (int64_t head = 0; head < K; head++) {
    int64_t at = ((number * K + head) * token->slots + token->slot) * H;
    memcpy(token->keys + at, heads + (N + head) * H, sizeof(float) * (size_t)H);
    memcpy(token->values + at, heads + (N + K + head) * H, sizeof(float) * (size_t)H);
  }
}

/* softmax(q Kᵀ · scale) V of one query over ``seen`` slots. */
INLINE void attend_to(const float *restrict query, const float *restrict keys,
                      const float *restrict values, int64_t seen, float scale,
                      float *restrict scores, float *restrict mixed, const int64_t H) {
  float most = -INFINITY, total = 0.0f;
  for (int64_t s = 0; s < seen; s++) {
    float score = 0.0f;
#pragma omp simd reduction(+ : score)
    for (int64_t h = 0; h < H; h++) score += query[h] * keys[s * H + h];
    scores[s] = score * scale;
    most = most > scores[s] ? most : scores[s];
  }
#pragma omp simd reduction(+ : total)
  for (int64_t s = 0; s < seen; s++) {
    scores[s] = exponential(scores[s] - most);
    total += scores[s];
  }
  for (int64_t h = 0; h < H; h++) mixed[h] = 0.0f;
  for (int64_t s = 0; s < seen; s++)
#pragma omp simd
    for (int64_t h = 0; h < H; h++) mixed[h] += scores[s] * values[s * H + h];
  for (int64_t h = 0; h < H; h++) mixed[h] /= total;
}

static void attend(const Model *model, int64_t number, int64_t head, const float *query,
                   const Token *token, float *scores, float *mixed) {
  int64_t H = model->head_size, K = model->kv_heads;
  int64_t low = model->window ? token->slot + 1 - model->window : 0;
  low = low > 0 ? low : 0;
  int64_t seen = token->slot + 1 - low;
  int64_t at = ((number * K + head / (model->heads / K)) * token->slots + low) * H;
  const float *keys = token->keys + at, *values = token->values + at;
  if (H == 64)
    attend_to(query, keys, values, seen, model->scale, scores, mixed, 64);
  else if (H == 128)
    attend_to(query, keys, values, seen, model->scale, scores, mixed, 128);
  else
    attend_to(query, keys, values, seen, model->scale, scores, mixed, H);
}

static int thread_number(void) {
#ifdef _OPENMP
  return omp_get_thread_num();
#else
  return 0;
#endif
}

/* All layers, in a team of threads. x (R, D) is read and written. heads, mixed, inner, normed and
   scores are room for what a layer's parts give; slots: those of the longest text. */
static void read_tokens(const Model *model, float *x, int64_t count, const Token *tokens,
                        const Rows *rows, float *heads, float *mixed, float *inner, float *normed,
                        float *scores, int64_t slots) {
  int64_t D = model->width, N = model->heads, H = model->head_size, F = model->inner;
  int64_t M = (N + 2 * model->kv_heads) * H;
  for (int64_t number = 0; number < model->num_layers; number++) {
    const Layer *layer = model->layers + number;
#pragma omp for schedule(static)
    for (int64_t r = 0; r < count; r++) {
      rms_norm(x + r * D, layer->norm_1, model->epsilon, D, normed + r * D);
      quantise(&layer->query_key_value, normed + r * D, rows, r);
    }
    product(&layer->query_key_value, rows, count, heads, 0);
#pragma omp for schedule(static)
    for (int64_t r = 0; r < count; r++) place(model, layer, number, heads + r * M, tokens + r);
#pragma omp for schedule(static) collapse(2)
    for (int64_t r = 0; r < count; r++)
      for (int64_t head = 0; head < N; head++)
        attend(model, number, head, heads + r * M + head * H, tokens + r,
               scores + thread_number() * slots, mixed + (r * N + head) * H);
#pragma omp for schedule(static)
    for (int64_t r = 0; r < count; r++) quantise(&layer->output, mixed + r * N * H, rows, r);
    product(&layer->output, rows, count, x, 1);
#pragma omp for schedule(static)
    for (int64_t r = 0; r < count; r++) {
      rms_norm(x + r * D, layer->norm_2, model->epsilon, D, normed + r * D);
      quantise(&layer->gate_up, normed + r * D, rows, r);
    }
    product(&layer->gate_up, rows, count, inner, 0);
#pragma omp for schedule(static)
    for (int64_t r = 0; r < count; r++) {
      float *gate = inner + r * 2 * F;
      gate_with(gate, gate + F, F);
      quantise(&layer->contract, gate, rows, r);
    }
    product(&layer->contract, rows, count, x, 1);
  }
#pragma omp for schedule(static)
  for (int64_t r = 0; r < count; r++)
    rms_norm(x + r * D, model->norm, model->epsilon, D, x + r * D);
}

static int64_t most_of(int64_t a, int64_t b) { return a > b ? a : b; }

static float *new_floats(int64_t count) { return malloc(sizeof(float) * (size_t)count); }

/* Read the next tokens of some texts: x (R, D) is their embeddings, end to end, and becomes what
   the output layer takes; their keys and values come into the texts' tables. Returns 0, or 1 without
   memory. */
int llmctl_read(const Model *model, float *x, const Part *parts, int64_t num_parts, int threads) {
  int64_t count = 0, slots = 0, inputs = 0;
  for (int64_t p = 0; p < num_parts; p++) {
    count += parts[p].tokens;
    slots = most_of(slots, parts[p].first + parts[p].tokens);
  }
  for (int64_t l = 0; l < model->num_layers; l++) {
    const Layer *layer = model->layers + l;
    inputs = most_of(inputs, most_of(layer->query_key_value.inputs, layer->output.inputs));
    inputs = most_of(inputs, most_of(layer->gate_up.inputs, layer->contract.inputs));
  }
  int64_t N = model->heads, H = model->head_size;
  Rows rows;
  int ready = begin_rows(&rows, count, inputs);
  Token *tokens = malloc(sizeof(Token) * (size_t)count);
  float *heads = new_floats(count * (N + 2 * model->kv_heads) * H);
  float *mixed = new_floats(count * N * H);
  float *inner = new_floats(count * 2 * model->inner);
  float *normed = new_floats(count * model->width);
  float *scores = new_floats(threads * slots);
  ready = ready && tokens && heads && mixed && inner && normed && scores;
  if (ready) {
    Token *next = tokens;
    for (int64_t p = 0; p < num_parts; p++)
      for (int64_t t = 0; t < parts[p].tokens; t++)
        *next++ = (Token){parts[p].keys, parts[p].values, parts[p].slots, parts[p].first + t};
#pragma omp parallel num_threads(threads)
    read_tokens(model, x, count, tokens, &rows, heads, mixed, inner, normed, scores, slots);
  }
  end_rows(&rows);
  free(tokens);
  free(heads);
  free(mixed);
  free(inner);
  free(normed);
  free(scores);
  return !ready;
}
