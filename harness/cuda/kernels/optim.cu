// All variables of a network at once: the norm of their gradients, their sum over micro-batches, and
// the step of the optimiser with the moving average behind it.
//
// A block works on one chunk of one variable; which one stands in `chunks`. Products and sums are
// rounded one by one, as the CPU does it: the compiler would fuse them otherwise, and the two devices
// would differ in the last bit. Nothing here adds in an order that depends on time.
#include <stdint.h>

#define CHUNK 8192
#define THREADS 256

// One variable. Moments that the rule does not have, and an average that the recipe does not keep,
// are null.
struct Entry {
  float *value;
  float *average;
  float *first;
  float *second;
  float *largest;
  uint64_t length;
};

// What a backward pass came to. The host reads it when the step is over; the next kernels read it at
// once, so that none of them waits for the host.
struct Status {
  double is_finite; // 1, or 0 after anything that is not: nothing moves then
  double factor;    // what clips the gradient
  double norm;
  double loss;
};

__device__ __forceinline__ bool aligned(const void *pointer) { return ((uintptr_t)pointer & 15) == 0; }

__device__ __forceinline__ float multiply_add(float a, float b, float c) { return __fadd_rn(__fmul_rn(a, b), c); }

// The sum over a block, in a fixed order; thread 0 has it.
__device__ double block_sum(double sum) {
  __shared__ double warps[THREADS / 32];
  for (int lane = 16; lane > 0; lane /= 2) sum += __shfl_down_sync(0xffffffffu, sum, lane);
  if ((threadIdx.x & 31) == 0) warps[threadIdx.x / 32] = sum;
  __syncthreads();
  if (threadIdx.x == 0) {
    sum = warps[0];
    for (int warp = 1; warp < THREADS / 32; warp++) sum += warps[warp];
  }
  return sum;
}

__device__ __forceinline__ double square(float x) { return (double)x * (double)x; }

// partials[block] = the sum of the squares of the block's chunk. Reads 4 bytes a number.
extern "C" __global__ void __launch_bounds__(THREADS)
square_sums(const Entry *entries, const uint32_t *chunks, const uint64_t *gradients, double *partials) {
  uint32_t variable = chunks[2 * blockIdx.x], chunk = chunks[2 * blockIdx.x + 1];
  const float *gradient = (const float *)gradients[variable];
  double sum = 0;
  if (gradient) {
    uint64_t start = (uint64_t)chunk * CHUNK;
    uint64_t left = entries[variable].length - start;
    uint32_t n = left < CHUNK ? (uint32_t)left : CHUNK;
    gradient += start;
    uint32_t done = 0;
    if (aligned(gradient)) {
      done = n & ~3u;
      for (uint32_t i = 4 * threadIdx.x; i < done; i += 4 * THREADS) {
        float4 g = *(const float4 *)(gradient + i);
        sum += square(g.x) + square(g.y) + (square(g.z) + square(g.w));
      }
    }
    for (uint32_t i = done + threadIdx.x; i < n; i += THREADS) sum += square(gradient[i]);
  }
  sum = block_sum(sum);
  if (threadIdx.x == 0) partials[blockIdx.x] = sum;
}

// One block: the norm, what clips it to `limit`, and whether all is well. Without a limit the norm is
// not asked for (`n` is 0) and the factor is 1. What an earlier micro-batch of the step went wrong
// with stays.
extern "C" __global__ void __launch_bounds__(THREADS)
judge(uint32_t n, const double *partials, const float *loss, uint32_t is_first, uint32_t has_limit, double limit, Status *status) {
  double sum = 0;
  for (uint32_t i = threadIdx.x; i < n; i += THREADS) sum += partials[i];
  sum = block_sum(sum);
  if (threadIdx.x != 0) return;
  if (!is_first && status->is_finite == 0.0) return;
  double norm = sqrt(sum), factor = has_limit ? limit / (norm + 1e-6) : 1.0;
  status->factor = factor < 1.0 ? factor : 1.0;
  status->norm = norm;
  status->loss = (double)*loss;
  status->is_finite = isfinite(norm) && isfinite(*loss) ? 1.0 : 0.0;
}

// sums = sums * factor + gradients, where `factor` clipped the sums so far; sums = gradients in the
// first micro-batch. Reads 8 bytes a number and writes 4.
extern "C" __global__ void __launch_bounds__(THREADS)
add_up(const Entry *entries, const uint32_t *chunks, const uint64_t *gradients, const uint64_t *sums, uint32_t is_first, const Status *status) {
  uint32_t variable = chunks[2 * blockIdx.x], chunk = chunks[2 * blockIdx.x + 1];
  const float *gradient = (const float *)gradients[variable];
  float *sum = (float *)sums[variable];
  if (!sum) return;
  uint64_t start = (uint64_t)chunk * CHUNK;
  uint64_t left = entries[variable].length - start;
  uint32_t n = left < CHUNK ? (uint32_t)left : CHUNK;
  float factor = is_first ? 0.f : (float)status->factor;
  sum += start;
  for (uint32_t i = threadIdx.x; i < n; i += THREADS) {
    float old = is_first ? 0.f : __fmul_rn(sum[i], factor);
    float now = gradient ? gradient[start + i] : 0.f;
    sum[i] = is_first ? now : __fadd_rn(old, now);
  }
}

// The numbers of one step, see `Coefficients` of the host.
struct Coefficients {
  float scale, rate, weight_decay, keep, beta1, beta2, one_minus_beta1, one_minus_beta2, bias2_sqrt, eps, past, now;
};

template <bool NESTEROV> struct Sgd {
  static const int MOMENTS = 1;
  __device__ static float move(const Coefficients &c, float x, float g, float *m) {
    g = __fadd_rn(__fmul_rn(g, c.scale), __fmul_rn(c.weight_decay, x));
    m[0] = multiply_add(c.beta1, m[0], g);
    float step = NESTEROV ? __fadd_rn(g, __fmul_rn(c.beta1, m[0])) : m[0];
    return __fsub_rn(x, __fmul_rn(c.rate, step));
  }
};

template <bool AMSGRAD> struct Adam {
  static const int MOMENTS = AMSGRAD ? 3 : 2;
  __device__ static float move(const Coefficients &c, float x, float g, float *m) {
    g = __fadd_rn(__fmul_rn(g, c.scale), __fmul_rn(c.weight_decay, x));
    m[0] = __fadd_rn(m[0], __fmul_rn(__fsub_rn(g, m[0]), c.one_minus_beta1));
    m[1] = __fadd_rn(__fmul_rn(m[1], c.beta2), __fmul_rn(__fmul_rn(c.one_minus_beta2, g), g));
    float bound = m[1];
    if (AMSGRAD) bound = m[2] = fmaxf(m[2], m[1]);
    float scale = __fadd_rn(__fdiv_rn(__fsqrt_rn(bound), c.bias2_sqrt), c.eps);
    return __fsub_rn(__fmul_rn(x, c.keep), __fdiv_rn(__fmul_rn(c.rate, m[0]), scale));
  }
};

template <typename Rule>
__device__ __forceinline__ void one(const Coefficients &c, const float *gradient, float *value, float *average, float *const *moments, uint32_t i) {
  float x = value[i];
  if (gradient) {
    float m[Rule::MOMENTS];
#pragma unroll
    for (int k = 0; k < Rule::MOMENTS; k++) m[k] = moments[k][i];
    value[i] = x = Rule::move(c, x, gradient[i], m);
#pragma unroll
    for (int k = 0; k < Rule::MOMENTS; k++) moments[k][i] = m[k];
  }
  if (average) average[i] = __fadd_rn(__fmul_rn(c.past, average[i]), __fmul_rn(c.now, x));
}

__device__ __forceinline__ float &part(float4 &v, int k) { return k == 0 ? v.x : k == 1 ? v.y : k == 2 ? v.z : v.w; }

template <typename Rule>
__device__ __forceinline__ void four(const Coefficients &c, const float *gradient, float *value, float *average, float *const *moments, uint32_t i) {
  float4 x = *(float4 *)(value + i);
  if (gradient) {
    float4 g = *(const float4 *)(gradient + i), m[Rule::MOMENTS];
#pragma unroll
    for (int k = 0; k < Rule::MOMENTS; k++) m[k] = *(float4 *)(moments[k] + i);
#pragma unroll
    for (int j = 0; j < 4; j++) {
      float one[Rule::MOMENTS];
#pragma unroll
      for (int k = 0; k < Rule::MOMENTS; k++) one[k] = part(m[k], j);
      part(x, j) = Rule::move(c, part(x, j), part(g, j), one);
#pragma unroll
      for (int k = 0; k < Rule::MOMENTS; k++) part(m[k], j) = one[k];
    }
    *(float4 *)(value + i) = x;
#pragma unroll
    for (int k = 0; k < Rule::MOMENTS; k++) *(float4 *)(moments[k] + i) = m[k];
  }
  if (average) {
    float4 a = *(float4 *)(average + i);
#pragma unroll
    for (int j = 0; j < 4; j++) part(a, j) = __fadd_rn(__fmul_rn(c.past, part(a, j)), __fmul_rn(c.now, part(x, j)));
    *(float4 *)(average + i) = a;
  }
}

// Reads and writes value, moments and average, and reads the gradient: 36 bytes a number for AdamW
// with an average.
template <typename Rule>
__device__ void step(const Entry *entries, const uint32_t *chunks, const uint64_t *gradients, const Status *status, Coefficients c) {
  if (status->is_finite == 0.0) return;
  c.scale = (float)status->factor;
  uint32_t variable = chunks[2 * blockIdx.x], chunk = chunks[2 * blockIdx.x + 1];
  Entry entry = entries[variable];
  uint64_t start = (uint64_t)chunk * CHUNK;
  uint64_t left = entry.length - start;
  uint32_t n = left < CHUNK ? (uint32_t)left : CHUNK;
  const float *gradient = (const float *)gradients[variable];
  float *value = entry.value + start, *average = entry.average;
  float *moments[3] = {entry.first, entry.second, entry.largest};
  // A variable that is not trained has no moments.
  if (!moments[0]) gradient = nullptr;
  bool wide = aligned(value);
  if (gradient) {
    gradient += start;
    wide = wide && aligned(gradient);
#pragma unroll
    for (int k = 0; k < Rule::MOMENTS; k++) {
      moments[k] += start;
      wide = wide && aligned(moments[k]);
    }
  }
  if (average) {
    average += start;
    wide = wide && aligned(average);
  }
  uint32_t done = wide ? n & ~3u : 0;
  for (uint32_t i = 4 * threadIdx.x; i < done; i += 4 * THREADS) four<Rule>(c, gradient, value, average, moments, i);
  for (uint32_t i = done + threadIdx.x; i < n; i += THREADS) one<Rule>(c, gradient, value, average, moments, i);
}

#define STEP(name, rule)                                                                                             \
  extern "C" __global__ void __launch_bounds__(THREADS)                                                              \
  name(const Entry *entries, const uint32_t *chunks, const uint64_t *gradients, const Status *status, float rate,    \
       float weight_decay, float keep, float beta1, float beta2, float one_minus_beta1, float one_minus_beta2,       \
       float bias2_sqrt, float eps, float past, float now) {                                                         \
    Coefficients c = {1.f, rate, weight_decay, keep, beta1, beta2, one_minus_beta1, one_minus_beta2, bias2_sqrt, eps, \
                      past, now};                                                                                    \
    step<rule>(entries, chunks, gradients, status, c);                                                               \
  }

STEP(sgd, Sgd<false>)
STEP(sgd_nesterov, Sgd<true>)
STEP(adam, Adam<false>)
STEP(adam_amsgrad, Adam<true>)
