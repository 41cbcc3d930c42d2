// Convolutions as matrix products, channels-last: the windows of an image become rows of a matrix, and
// gradients of such a matrix are gathered back. Used where cuDNN is not, and to check it.
//
// What is only moved is moved in units of 16, 4 or 2 bytes; `units` is the number of them in a pixel.
#include "common.cuh"

// One block for each output pixel. `x`: [images, height, width, units]; `columns`: [images * out_height
// * out_width, kernel, kernel, units]. What lies outside of the image is zero.
template <typename U>
__device__ __forceinline__ void windows(const U *__restrict__ x, U *__restrict__ columns, U zero, uint32_t height,
                                        uint32_t width, uint32_t units, uint32_t out_height, uint32_t out_width,
                                        uint32_t kernel, uint32_t stride, uint32_t padding) {
  const uint32_t row = blockIdx.x;
  const uint32_t j = row % out_width;
  const uint32_t i = row / out_width % out_height;
  const size_t image = row / out_width / out_height;
  const uint32_t length = kernel * kernel * units;
  const U *source = x + image * height * width * units;
  U *target = columns + (size_t)row * length;
  for (uint32_t at = threadIdx.x; at < length; at += blockDim.x) {
    const uint32_t unit = at % units;
    const uint32_t s = at / units % kernel;
    const uint32_t r = at / units / kernel;
    // Unsigned: a position before the image wraps to one far behind it.
    const uint32_t h = i * stride + r - padding;
    const uint32_t w = j * stride + s - padding;
    target[at] = h < height && w < width ? source[((size_t)h * width + w) * units + unit] : zero;
  }
}

#define WINDOWS(NAME, U, ZERO)                                                                                      \
  extern "C" __global__ void NAME(const U *x, U *columns, uint32_t height, uint32_t width, uint32_t units,          \
                                  uint32_t out_height, uint32_t out_width, uint32_t kernel, uint32_t stride,        \
                                  uint32_t padding) {                                                               \
    windows<U>(x, columns, ZERO, height, width, units, out_height, out_width, kernel, stride, padding);             \
  }

WINDOWS(windows_16, uint4, make_uint4(0, 0, 0, 0))
WINDOWS(windows_4, uint32_t, 0u)
WINDOWS(windows_2, uint16_t, (uint16_t)0)

// One block for each input pixel: the sum of what the windows around it say about it, in the order of the
// kernel's positions, so that the result is the same every time.
template <typename T>
__device__ __forceinline__ void gather(const float *__restrict__ columns, T *__restrict__ x, uint32_t height,
                                       uint32_t width, uint32_t channels, uint32_t out_height, uint32_t out_width,
                                       uint32_t kernel, uint32_t stride, uint32_t padding) {
  const uint32_t pixel = blockIdx.x;
  const uint32_t w = pixel % width;
  const uint32_t h = pixel / width % height;
  const size_t image = pixel / width / height;
  for (uint32_t channel = threadIdx.x; channel < channels; channel += blockDim.x) {
    float sum = 0.f;
    for (uint32_t r = 0; r < kernel; r++) {
      if (h + padding < r || (h + padding - r) % stride != 0) continue;
      const uint32_t i = (h + padding - r) / stride;
      if (i >= out_height) continue;
      for (uint32_t s = 0; s < kernel; s++) {
        if (w + padding < s || (w + padding - s) % stride != 0) continue;
        const uint32_t j = (w + padding - s) / stride;
        if (j >= out_width) continue;
        const size_t row = (image * out_height + i) * out_width + j;
        sum += columns[((row * kernel + r) * kernel + s) * channels + channel];
      }
    }
    x[(size_t)pixel * channels + channel] = from_float<T>(sum);
  }
}

#define GATHER(NAME, T)                                                                                             \
  extern "C" __global__ void NAME(const float *columns, T *x, uint32_t height, uint32_t width, uint32_t channels,   \
                                  uint32_t out_height, uint32_t out_width, uint32_t kernel, uint32_t stride,        \
                                  uint32_t padding) {                                                               \
    gather<T>(columns, x, height, width, channels, out_height, out_width, kernel, stride, padding);                 \
  }

GATHER(gather_f32, float)
GATHER(gather_bf16, __nv_bfloat16)

// `n` numbers of f32 rounded to bf16.
extern "C" __global__ void round_bf16(const float *from, __nv_bfloat16 *to, uint64_t n) {
  const uint64_t step = (uint64_t)gridDim.x * blockDim.x;
  for (uint64_t i = blockIdx.x * (uint64_t)blockDim.x + threadIdx.x; i < n; i += step)
    to[i] = __float2bfloat16_rn(from[i]);
}
