// The softmax over the rows of attention scores, and its gradient, both in place: scores are f32, and a
// row of the result begins where the row of scores began, in the dtype of the network. A row of n numbers
// in bf16 fills the first half of its place.
//
// A warp has one row. With N > 0 a lane keeps up to N packs of four numbers, and n is a multiple of four;
// with N = 0 a row of any length is read again in each pass.
#include "common.cuh"

#define WARPS 8

template <typename T> __device__ __forceinline__ void store_four(T *p, float4 x) {
  if constexpr (sizeof(T) == 4) {
    *reinterpret_cast<float4 *>(p) = x;
  } else {
    __nv_bfloat162 low = __floats2bfloat162_rn(x.x, x.y), high = __floats2bfloat162_rn(x.z, x.w);
    uint2 words;
    words.x = *reinterpret_cast<uint32_t *>(&low);
    words.y = *reinterpret_cast<uint32_t *>(&high);
    *reinterpret_cast<uint2 *>(p) = words;
  }
}

template <typename T> __device__ __forceinline__ float4 load_four(const T *p) {
  if constexpr (sizeof(T) == 4) {
    return *reinterpret_cast<const float4 *>(p);
  } else {
    uint2 words = *reinterpret_cast<const uint2 *>(p);
    return make_float4(__uint_as_float(words.x << 16), __uint_as_float(words.x & 0xffff0000u),
                       __uint_as_float(words.y << 16), __uint_as_float(words.y & 0xffff0000u));
  }
}

template <typename T, int N> __device__ __forceinline__ void softmax_kept(float *row, uint32_t n) {
  uint32_t lane = threadIdx.x % 32;
  float4 x[N];
  float most = -INFINITY;
#pragma unroll
  for (int k = 0; k < N; k++) {
    uint32_t i = (k * 32 + lane) * 4;
    x[k] = i < n ? load_four(row + i) : make_float4(-INFINITY, -INFINITY, -INFINITY, -INFINITY);
    most = fmaxf(most, fmaxf(fmaxf(x[k].x, x[k].y), fmaxf(x[k].z, x[k].w)));
  }
  most = warp_max(most);
  float sum = 0.f;
#pragma unroll
  for (int k = 0; k < N; k++) {
    x[k].x = __expf(x[k].x - most), x[k].y = __expf(x[k].y - most);
    x[k].z = __expf(x[k].z - most), x[k].w = __expf(x[k].w - most);
    sum += (x[k].x + x[k].y) + (x[k].z + x[k].w);
  }
  float scale = 1.f / warp_sum(sum);
  // In bf16 a lane writes where another one has read.
  __syncwarp();
#pragma unroll
  for (int k = 0; k < N; k++) {
    uint32_t i = (k * 32 + lane) * 4;
    float4 y = make_float4(x[k].x * scale, x[k].y * scale, x[k].z * scale, x[k].w * scale);
    if (i < n) store_four(reinterpret_cast<T *>(row) + i, y);
  }
}

template <typename T> __device__ __forceinline__ void softmax_again(float *row, uint32_t n) {
  uint32_t lane = threadIdx.x % 32;
  float most = -INFINITY;
  for (uint32_t i = lane; i < n; i += 32) most = fmaxf(most, row[i]);
  most = warp_max(most);
  float sum = 0.f;
  for (uint32_t i = lane; i < n; i += 32) sum += __expf(row[i] - most);
  float scale = 1.f / warp_sum(sum);
  for (uint32_t first = 0; first < n; first += 32) {
    uint32_t i = first + lane;
    float y = i < n ? __expf(row[i] - most) * scale : 0.f;
    // What is written here ends before what is read next, but not before what was just read.
    __syncwarp();
    if (i < n) reinterpret_cast<T *>(row)[i] = from_float<T>(y);
    __syncwarp();
  }
}

// `row` has the gradients of the probabilities, and gets those of the scores.
template <typename T, int N>
__device__ __forceinline__ void backward_kept(const T *__restrict__ probabilities, float *row, uint32_t n) {
  uint32_t lane = threadIdx.x % 32;
  float4 x[N], p[N];
  float sum = 0.f;
#pragma unroll
  for (int k = 0; k < N; k++) {
    uint32_t i = (k * 32 + lane) * 4;
    x[k] = i < n ? load_four(row + i) : make_float4(0.f, 0.f, 0.f, 0.f);
    p[k] = i < n ? load_four(probabilities + i) : make_float4(0.f, 0.f, 0.f, 0.f);
    sum += (x[k].x * p[k].x + x[k].y * p[k].y) + (x[k].z * p[k].z + x[k].w * p[k].w);
  }
  sum = warp_sum(sum);
  __syncwarp();
#pragma unroll
  for (int k = 0; k < N; k++) {
    uint32_t i = (k * 32 + lane) * 4;
    float4 y = make_float4(p[k].x * (x[k].x - sum), p[k].y * (x[k].y - sum), p[k].z * (x[k].z - sum),
                           p[k].w * (x[k].w - sum));
    if (i < n) store_four(reinterpret_cast<T *>(row) + i, y);
  }
}

template <typename T>
__device__ __forceinline__ void backward_again(const T *__restrict__ probabilities, float *row, uint32_t n) {
  uint32_t lane = threadIdx.x % 32;
  float sum = 0.f;
  for (uint32_t i = lane; i < n; i += 32) sum += row[i] * to_float<T>(probabilities[i]);
  sum = warp_sum(sum);
  for (uint32_t first = 0; first < n; first += 32) {
    uint32_t i = first + lane;
    float y = i < n ? to_float<T>(probabilities[i]) * (row[i] - sum) : 0.f;
    __syncwarp();
    if (i < n) reinterpret_cast<T *>(row)[i] = from_float<T>(y);
    __syncwarp();
  }
}

template <typename T, int N> __device__ __forceinline__ void softmax(float *scores, uint32_t rows, uint32_t n) {
  uint32_t row = blockIdx.x * WARPS + threadIdx.x / 32;
  if (row >= rows) return;
  float *mine = scores + (size_t)row * n;
  if constexpr (N > 0) {
    softmax_kept<T, N>(mine, n);
  } else {
    softmax_again<T>(mine, n);
  }
}

template <typename T, int N>
__device__ __forceinline__ void softmax_backward(const float *probabilities, float *grads, uint32_t rows, uint32_t n) {
  uint32_t row = blockIdx.x * WARPS + threadIdx.x / 32;
  if (row >= rows) return;
  const T *given = reinterpret_cast<const T *>(probabilities + (size_t)row * n);
  float *mine = grads + (size_t)row * n;
  if constexpr (N > 0) {
    backward_kept<T, N>(given, mine, n);
  } else {
    backward_again<T>(given, mine, n);
  }
}

#define INSTANCES(T, N, NAME)                                                                                         \
  extern "C" __global__ void __launch_bounds__(WARPS * 32) softmax_##NAME(float *scores, uint32_t rows, uint32_t n) { \
    softmax<T, N>(scores, rows, n);                                                                                   \
  }                                                                                                                   \
  extern "C" __global__ void __launch_bounds__(WARPS * 32)                                                            \
      softmax_backward_##NAME(const float *probabilities, float *grads, uint32_t rows, uint32_t n) {                  \
    softmax_backward<T, N>(probabilities, grads, rows, n);                                                            \
  }

INSTANCES(float, 2, f32_keep2)
INSTANCES(float, 8, f32_keep8)
INSTANCES(float, 0, f32_again)
INSTANCES(__nv_bfloat16, 2, bf16_keep2)
INSTANCES(__nv_bfloat16, 8, bf16_keep8)
INSTANCES(__nv_bfloat16, 0, bf16_again)
