// What all kernels share: numbers of either dtype as f32, packs of 16 bytes, and how a 32-bit index is
// spread over a grid.
#pragma once
#include <cuda_bf16.h>
#include <stdint.h>

template <typename T> __device__ __forceinline__ float to_float(T x);
template <> __device__ __forceinline__ float to_float(float x) { return x; }
template <> __device__ __forceinline__ float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }

template <typename T> __device__ __forceinline__ T from_float(float x);
template <> __device__ __forceinline__ float from_float(float x) { return x; }
template <> __device__ __forceinline__ __nv_bfloat16 from_float(float x) { return __float2bfloat16_rn(x); }

// V numbers that are read and written with one access. V is 1, or such that the pack has 16 bytes; the
// caller vouches that a pack's address is a multiple of its size.
template <typename T, int V> struct alignas(sizeof(T) * V) Pack {
  T v[V];

  __device__ __forceinline__ float get(int i) const { return to_float<T>(v[i]); }
  // Two neighbours; i is even, or V is 1 and `b` goes nowhere.
  __device__ __forceinline__ void set(int i, float a, float b) {
    v[i] = from_float<T>(a);
    if constexpr (V > 1) v[i + 1] = from_float<T>(b);
  }
};

// Two numbers in a word: as eight separate numbers they would take eight registers.
template <> struct alignas(16) Pack<__nv_bfloat16, 8> {
  uint32_t words[4];

  __device__ __forceinline__ float get(int i) const {
    uint32_t word = words[i / 2];
    return __uint_as_float(i % 2 ? word & 0xffff0000u : word << 16);
  }
  __device__ __forceinline__ void set(int i, float a, float b) {
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(words[i / 2]) : "f"(b), "f"(a));
  }
};

// Each number by `f` of its place and itself.
template <typename T, int V, typename F> __device__ __forceinline__ void map(Pack<T, V> &x, F f) {
  if constexpr (V == 1) {
    x.set(0, f(0, x.get(0)), 0.f);
  } else {
#pragma unroll
    for (int i = 0; i < V; i += 2) x.set(i, f(i, x.get(i)), f(i + 1, x.get(i + 1)));
  }
}

template <typename T, int V> __device__ __forceinline__ Pack<T, V> load(const T *p) {
  return *reinterpret_cast<const Pack<T, V> *>(p);
}

template <typename T, int V> __device__ __forceinline__ void store(T *p, const Pack<T, V> &x) {
  *reinterpret_cast<Pack<T, V> *>(p) = x;
}

template <typename T, int V> __device__ __forceinline__ Pack<T, V> zeros() {
  Pack<T, V> x = {};
  return x;
}

// V parameters of as many channels; where V is more than 1 their address is a multiple of 16.
template <int V> struct Parameters {
  float v[V];

  __device__ __forceinline__ explicit Parameters(const float *p) {
    if constexpr (V % 4 == 0) {
#pragma unroll
      for (int i = 0; i < V; i += 4) {
        float4 four = __ldg(reinterpret_cast<const float4 *>(p + i));
        v[i] = four.x, v[i + 1] = four.y, v[i + 2] = four.z, v[i + 3] = four.w;
      }
    } else {
#pragma unroll
      for (int i = 0; i < V; i++) v[i] = __ldg(p + i);
    }
  }
};

// x / (1 + exp(-x)) and its derivative. exp(-x) may overflow to infinity: the results are then 0.
__device__ __forceinline__ float sigmoid(float x) { return __fdividef(1.f, 1.f + __expf(-x)); }
__device__ __forceinline__ float silu(float x) { return x * sigmoid(x); }
__device__ __forceinline__ float silu_slope(float x) {
  float s = sigmoid(x);
  return s * (1.f + x * (1.f - s));
}

__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
  for (int lane = 16; lane > 0; lane >>= 1) x += __shfl_xor_sync(0xffffffffu, x, lane);
  return x;
}

__device__ __forceinline__ float warp_max(float x) {
#pragma unroll
  for (int lane = 16; lane > 0; lane >>= 1) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, lane));
  return x;
}

// The number of this thread in the grid. Rust checks that a grid has fewer than 2^32 threads.
__device__ __forceinline__ uint32_t thread_number() { return blockIdx.x * blockDim.x + threadIdx.x; }
