// Sums over elements, and over rows for the gradients of biases.
//
// A thread works on one pack of channels; `columns` is the number of packs in a row of channels.
#include "common.cuh"

template <typename T, int V>
__device__ void add(const T *__restrict__ a, const T *__restrict__ b, const float *__restrict__ bias, T *__restrict__ out,
                    uint32_t packs, uint32_t columns) {
  uint32_t i = thread_number();
  if (i >= packs) return;
  size_t at = (size_t)i * V;
  Pack<T, V> x = load<T, V>(a + at), y = load<T, V>(b + at);
  if (bias) {
    Parameters<V> offsets(bias + i % columns * V);
    map(x, [&](int j, float value) { return value + y.get(j) + offsets.v[j]; });
  } else {
    map(x, [&](int j, float value) { return value + y.get(j); });
  }
  store<T, V>(out + at, x);
}

// `image` is the number of packs in an image, `stride` the distance of the biases of two images: 0 where
// all images share them.
template <typename T, int V>
__device__ void add_bias(const T *__restrict__ xs, const float *__restrict__ bias, T *__restrict__ out, uint32_t packs,
                         uint32_t columns, uint32_t image, uint32_t stride) {
  uint32_t i = thread_number();
  if (i >= packs) return;
  size_t at = (size_t)i * V;
  Pack<T, V> x = load<T, V>(xs + at);
  const float *mine = bias + i % columns * V;
  if (stride) mine += (size_t)(i / image) * stride;
  Parameters<V> offsets(mine);
  map(x, [&](int j, float value) { return value + offsets.v[j]; });
  store<T, V>(out + at, x);
}

#define SUM_THREADS 256

// The sum of each channel over `rows` rows, for each of some images. A block adds up `chunk` rows of
// `slab` columns; out is [images, chunks, channels]. The order of the additions depends on the sizes only.
template <typename T, int V>
__device__ void sum_rows(const T *__restrict__ xs, float *__restrict__ out, uint32_t rows, uint32_t columns,
                         uint32_t chunk, uint32_t slab) {
  __shared__ float part[SUM_THREADS * V];
  uint32_t slabs = (columns + slab - 1) / slab, chunks = (rows + chunk - 1) / chunk;
  uint32_t block = blockIdx.x;
  uint32_t first_column = block % slabs * slab;
  block /= slabs;
  uint32_t first_row = block % chunks * chunk, image = block / chunks;
  uint32_t lines = SUM_THREADS / slab, column = threadIdx.x % slab, line = threadIdx.x / slab;

  float sums[V];
#pragma unroll
  for (int j = 0; j < V; j++) sums[j] = 0.f;
  if (line < lines && first_column + column < columns) {
    uint32_t end = min(first_row + chunk, rows);
    const T *from = xs + ((size_t)image * rows * columns + first_column + column) * V;
#pragma unroll 4
    for (uint32_t row = first_row + line; row < end; row += lines) {
      Pack<T, V> x = load<T, V>(from + (size_t)row * columns * V);
#pragma unroll
      for (int j = 0; j < V; j++) sums[j] += x.get(j);
    }
  }
  // [line, slab * V]; channels one behind the other.
  uint32_t width = slab * V;
  if (line < lines) {
#pragma unroll
    for (int j = 0; j < V; j++) part[line * width + column * V + j] = sums[j];
  }
  __syncthreads();
  uint32_t channels = columns * V;
  for (uint32_t c = threadIdx.x; c < width; c += SUM_THREADS) {
    uint32_t channel = first_column * V + c;
    if (channel >= channels) break;
    float sum = 0.f;
    for (uint32_t l = 0; l < lines; l++) sum += part[l * width + c];
    out[((size_t)image * chunks + first_row / chunk) * channels + channel] = sum;
  }
}

#define INSTANCES(T, V, NAME)                                                                                         \
  extern "C" __global__ void add_##NAME(const T *a, const T *b, const float *bias, T *out, uint32_t packs,            \
                                        uint32_t columns) {                                                           \
    add<T, V>(a, b, bias, out, packs, columns);                                                                       \
  }                                                                                                                   \
  extern "C" __global__ void add_bias_##NAME(const T *xs, const float *bias, T *out, uint32_t packs,                  \
                                             uint32_t columns, uint32_t image, uint32_t stride) {                     \
    add_bias<T, V>(xs, bias, out, packs, columns, image, stride);                                                     \
  }                                                                                                                   \
  extern "C" __global__ void __launch_bounds__(SUM_THREADS)                                                           \
      sum_rows_##NAME(const T *xs, float *out, uint32_t rows, uint32_t columns, uint32_t chunk, uint32_t slab) {      \
    sum_rows<T, V>(xs, out, rows, columns, chunk, slab);                                                              \
  }

INSTANCES(float, 4, f32_4)
INSTANCES(float, 1, f32_1)
INSTANCES(__nv_bfloat16, 8, bf16_8)
INSTANCES(__nv_bfloat16, 1, bf16_1)
