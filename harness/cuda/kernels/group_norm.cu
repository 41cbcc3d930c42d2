// Group normalisation of channels-last images, with a shift before it and SiLU behind it.
#include "group_norm.cuh"

// The packs of a thread in two images, of which the first has the first `own` channels.
template <typename T, int V, int N>
__device__ __forceinline__ Rows<T, V, N> joined(const T *xs, const T *beside, uint32_t own, const Part<V> &part, const Task &task) {
  Block block(task);
  uint32_t channel = block.channel + part.column * V, pixel = block.image * task.pixels + part.line;
  bool is_own = channel < own;
  uint32_t channels = is_own ? own : task.channels - own;
  if (!is_own) channel -= own;
  return Rows<T, V, N>(is_own ? xs : beside, pixel * channels + channel, part.lines * channels, part.mine);
}

// Shared memory: 3 numbers for each channel, then one for each unit and line.
template <typename T, int V, int N>
__device__ __forceinline__ void forward(Rows<T, V, N> &rows, const Part<V> &part, const float *__restrict__ weight,
                                        const float *__restrict__ bias, const float *__restrict__ shift, T *__restrict__ out,
                                        const Task &task) {
  float *base = shared, *scale = base + task.slab, *offset = scale + task.slab, *sums = offset + task.slab;
  statistics(rows, part, task, shift, base, sums, [&](uint32_t c, float deviation) {
    scale[c] = deviation * Block(task).of(weight, task.weight_stride)[c];
    offset[c] = Block(task).of(bias, task.bias_stride)[c];
  });

  constexpr int J = GO<V, N>;
#pragma unroll
  for (int j = 0; j < V; j += J) {
    asm volatile("" ::: "memory");
    float b[J], s[J], o[J];
#pragma unroll
    for (int i = 0; i < J; i++) {
      uint32_t c = part.column * V + j + i;
      b[i] = base[c], s[i] = scale[c], o[i] = offset[c];
    }
    rows.each([&](uint32_t k, Pack<T, V> &x) {
      change<T, V, J>(x, j, [&](int i, float value) {
        float z = (value + b[i]) * s[i] + o[i];
        return task.silu ? silu(z) : z;
      });
      if constexpr (N == 0) store<T, V>(out + part.place(k), x);
    });
  }
  if constexpr (N > 0) {
    rows.each([&](uint32_t k, const Pack<T, V> &x) { store<T, V>(out + part.place(k), x); });
  }
}

// THREADS are the most threads of a block, BLOCKS the blocks that a multiprocessor is to hold.
#define FORWARD(T, V, N, NAME, THREADS, BLOCKS)                                                                       \
  extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) group_norm_##NAME(                                    \
      const T *xs, const float *weight, const float *bias, const float *shift, T *out, uint32_t pixels,               \
      uint32_t channels, uint32_t slab, uint32_t group, uint32_t unit_bits, uint32_t weight_stride,                   \
      uint32_t bias_stride, uint32_t shift_stride, float eps, uint32_t silu) {                                        \
    Task task{pixels, channels, slab, group, unit_bits, weight_stride, bias_stride, shift_stride, eps, silu};         \
    Part<V> part(task);                                                                                               \
    Rows<T, V, N> rows(xs, part);                                                                                     \
    forward<T, V, N>(rows, part, weight, bias, shift, out, task);                                                     \
  }                                                                                                                   \
  extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) group_norm_joined_##NAME(                             \
      const T *xs, const T *beside, uint32_t own, const float *weight, const float *bias, const float *shift, T *out, \
      uint32_t pixels, uint32_t channels, uint32_t slab, uint32_t group, uint32_t unit_bits, uint32_t weight_stride,  \
      uint32_t bias_stride, uint32_t shift_stride, float eps, uint32_t silu) {                                        \
    Task task{pixels, channels, slab, group, unit_bits, weight_stride, bias_stride, shift_stride, eps, silu};         \
    Part<V> part(task);                                                                                               \
    Rows<T, V, N> rows = joined<T, V, N>(xs, beside, own, part, task);                                                \
    forward<T, V, N>(rows, part, weight, bias, shift, out, task);                                                     \
  }
#define INSTANCES(T, V, NAME)                                                                                         \
  FORWARD(T, V, 2, NAME##_keep2, 512, 2)                                                                              \
  FORWARD(T, V, 4, NAME##_keep4, 512, 2)                                                                              \
  FORWARD(T, V, 8, NAME##_keep8, 512, 2)                                                                              \
  FORWARD(T, V, 16, NAME##_keep16, 512, 1)                                                                            \
  FORWARD(T, V, 0, NAME##_again, 512, 1)                                                                              \
  FORWARD(T, 1, 0, NAME##_single, 512, 1)

INSTANCES(float, 4, f32)
INSTANCES(__nv_bfloat16, 8, bf16)
