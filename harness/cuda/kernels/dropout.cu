// Dropout by the mask of the CPU: elements are numbered in channels-first order, and the n-th pair of them
// is decided by the n-th number of a SplitMix64 sequence.
#include "common.cuh"

__device__ __forceinline__ uint64_t splitmix(uint64_t key, uint64_t n) {
  uint64_t z = key + (n + 1) * 0x9E3779B97F4A7C15ull;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
  return z ^ (z >> 31);
}

// Images with an even number of pixels: a thread has two pixels next to each other, which are the pairs,
// of one pack of channels. `packs` counts these; `columns` is the number of packs in a row of channels.
template <typename T, int V>
__device__ void dropout_pairs(const T *__restrict__ xs, T *__restrict__ out, uint32_t packs, uint32_t columns,
                              uint32_t pixels, uint64_t key, uint32_t threshold, float scale) {
  uint32_t i = thread_number();
  if (i >= packs) return;
  uint32_t column = i % columns, pair = i / columns, pairs = pixels / 2;
  uint32_t image = pair / pairs, channels = columns * V;
  size_t at = (size_t)pair * 2 * channels + column * V;
  Pack<T, V> first = load<T, V>(xs + at), second = load<T, V>(xs + at + channels);
  uint64_t number = ((uint64_t)image * channels + column * V) * pairs + pair % pairs;
  float keep[2][V];
#pragma unroll
  for (int j = 0; j < V; j++) {
    uint64_t bits = splitmix(key, number + (uint64_t)j * pairs);
    keep[0][j] = (uint32_t)bits < threshold ? 0.f : scale;
    keep[1][j] = (uint32_t)(bits >> 32) < threshold ? 0.f : scale;
  }
  map(first, [&](int j, float value) { return value * keep[0][j]; });
  map(second, [&](int j, float value) { return value * keep[1][j]; });
  store<T, V>(out + at, first);
  store<T, V>(out + at + channels, second);
}

template <typename T>
__device__ void dropout_each(const T *__restrict__ xs, T *__restrict__ out, uint32_t count, uint32_t channels,
                             uint32_t pixels, uint64_t key, uint32_t threshold, float scale) {
  uint32_t i = thread_number();
  if (i >= count) return;
  uint32_t channel = i % channels, pixel = i / channels % pixels, image = i / channels / pixels;
  uint64_t number = ((uint64_t)image * channels + channel) * pixels + pixel;
  uint64_t bits = splitmix(key, number / 2);
  uint32_t mine = number % 2 ? (uint32_t)(bits >> 32) : (uint32_t)bits;
  out[i] = from_float<T>(to_float<T>(xs[i]) * (mine < threshold ? 0.f : scale));
}

#define PAIRS(T, V, NAME)                                                                                             \
  extern "C" __global__ void dropout_pairs_##NAME(const T *xs, T *out, uint32_t packs, uint32_t columns,              \
                                                  uint32_t pixels, uint64_t key, uint32_t threshold, float scale) {   \
    dropout_pairs<T, V>(xs, out, packs, columns, pixels, key, threshold, scale);                                      \
  }
#define EACH(T, NAME)                                                                                                 \
  extern "C" __global__ void dropout_each_##NAME(const T *xs, T *out, uint32_t count, uint32_t channels,              \
                                                 uint32_t pixels, uint64_t key, uint32_t threshold, float scale) {    \
    dropout_each<T>(xs, out, count, channels, pixels, key, threshold, scale);                                         \
  }

PAIRS(float, 4, f32_4)
PAIRS(float, 1, f32_1)
PAIRS(__nv_bfloat16, 8, bf16_8)
PAIRS(__nv_bfloat16, 1, bf16_1)
EACH(float, f32)
EACH(__nv_bfloat16, bf16)
