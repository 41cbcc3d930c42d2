// What classifiers need beside convolutions: batch normalisation with frozen statistics, and the max pooling of
// ImageNet's ResNets.
//
// A thread writes one pack of channels; `columns` is the number of packs in a row of channels.
#include "common.cuh"

template <typename T, int V>
__device__ void scale_shift(const T *__restrict__ xs, const float *__restrict__ scale, const float *__restrict__ shift,
                            T *__restrict__ out, uint32_t packs, uint32_t columns, uint32_t relu) {
  uint32_t i = thread_number();
  if (i >= packs) return;
  uint32_t channel = i % columns * V;
  Parameters<V> a(scale + channel), b(shift + channel);
  Pack<T, V> pack = load<T, V>(xs + (size_t)i * V);
  // Not `fmaxf`: a NaN must stay one.
  map(pack, [&](int j, float value) {
    value = fmaf(value, a.v[j], b.v[j]);
    return relu && value < 0.f ? 0.f : value;
  });
  store<T, V>(out + (size_t)i * V, pack);
}

// The gradient of `xs`: that of the result times the scale, and nothing where ReLU let nothing through.
template <typename T, int V>
__device__ void scale_shift_gradient(const T *__restrict__ xs, const T *__restrict__ grad,
                                     const float *__restrict__ scale, const float *__restrict__ shift,
                                     T *__restrict__ out, uint32_t packs, uint32_t columns, uint32_t relu) {
  uint32_t i = thread_number();
  if (i >= packs) return;
  uint32_t channel = i % columns * V;
  Parameters<V> a(scale + channel), b(shift + channel);
  Pack<T, V> x = load<T, V>(xs + (size_t)i * V), pack = load<T, V>(grad + (size_t)i * V);
  map(pack, [&](int j, float slope) {
    bool passed = !relu || fmaf(x.get(j), a.v[j], b.v[j]) > 0.f;
    return passed ? slope * a.v[j] : 0.f;
  });
  store<T, V>(out + (size_t)i * V, pack);
}

// The window of an output pixel: 3x3 pixels about (2 y, 2 x), as far as they are inside.
struct Window {
  uint32_t top, bottom, left, right;

  __device__ Window(uint32_t y, uint32_t x, uint32_t height, uint32_t width) {
    top = y ? 2 * y - 1 : 0, left = x ? 2 * x - 1 : 0;
    bottom = min(2 * y + 2, height), right = min(2 * x + 2, width);
  }
};

// Where the greatest number of a window lies in its image's channel. The first one wins, and a NaN always.
template <typename T>
__device__ uint32_t greatest(const T *plane, Window window, uint32_t width, uint32_t channels) {
  uint32_t best = window.top * width + window.left;
  float most = to_float<T>(plane[(size_t)best * channels]);
  for (uint32_t y = window.top; y < window.bottom; y++) {
    for (uint32_t x = window.left; x < window.right; x++) {
      uint32_t at = y * width + x;
      float value = to_float<T>(plane[(size_t)at * channels]);
      if (value > most || isnan(value)) best = at, most = value;
    }
  }
  return best;
}

template <typename T>
__device__ void max_pool(const T *__restrict__ xs, T *__restrict__ out, uint32_t count, uint32_t channels,
                         uint32_t height, uint32_t width, uint32_t out_height, uint32_t out_width) {
  uint32_t i = thread_number();
  if (i >= count) return;
  uint32_t channel = i % channels, pixel = i / channels;
  uint32_t x = pixel % out_width, y = pixel / out_width % out_height, image = pixel / out_width / out_height;
  const T *plane = xs + (size_t)image * height * width * channels + channel;
  out[i] = plane[(size_t)greatest(plane, Window(y, x, height, width), width, channels) * channels];
}

// Each input pixel takes the gradients of the windows in which it is the greatest: at most four, one after the
// other, so that nothing is added in an order that changes.
template <typename T>
__device__ void max_pool_gradient(const T *__restrict__ xs, const T *__restrict__ grad, T *__restrict__ out,
                                  uint32_t count, uint32_t channels, uint32_t height, uint32_t width,
                                  uint32_t out_height, uint32_t out_width) {
  uint32_t i = thread_number();
  if (i >= count) return;
  uint32_t channel = i % channels, pixel = i / channels;
  uint32_t x = pixel % width, y = pixel / width % height, image = pixel / width / height;
  const T *plane = xs + (size_t)image * height * width * channels + channel;
  const T *slopes = grad + (size_t)image * out_height * out_width * channels + channel;
  float sum = 0.f;
  for (uint32_t oy = y / 2; oy <= (y + 1) / 2 && oy < out_height; oy++) {
    for (uint32_t ox = x / 2; ox <= (x + 1) / 2 && ox < out_width; ox++) {
      if (greatest(plane, Window(oy, ox, height, width), width, channels) == y * width + x) {
        sum += to_float<T>(slopes[((size_t)oy * out_width + ox) * channels]);
      }
    }
  }
  out[i] = from_float<T>(sum);
}

#define AFFINE(T, V, NAME)                                                                                           \
  extern "C" __global__ void scale_shift_##NAME(const T *xs, const float *scale, const float *shift, T *out,          \
                                                uint32_t packs, uint32_t columns, uint32_t relu) {                    \
    scale_shift<T, V>(xs, scale, shift, out, packs, columns, relu);                                                   \
  }                                                                                                                   \
  extern "C" __global__ void scale_shift_gradient_##NAME(const T *xs, const T *grad, const float *scale,              \
                                                         const float *shift, T *out, uint32_t packs,                  \
                                                         uint32_t columns, uint32_t relu) {                           \
    scale_shift_gradient<T, V>(xs, grad, scale, shift, out, packs, columns, relu);                                    \
  }

#define POOL(T, NAME)                                                                                                \
  extern "C" __global__ void max_pool_##NAME(const T *xs, T *out, uint32_t count, uint32_t channels,                  \
                                             uint32_t height, uint32_t width, uint32_t out_height,                    \
                                             uint32_t out_width) {                                                    \
    max_pool<T>(xs, out, count, channels, height, width, out_height, out_width);                                      \
  }                                                                                                                   \
  extern "C" __global__ void max_pool_gradient_##NAME(const T *xs, const T *grad, T *out, uint32_t count,             \
                                                      uint32_t channels, uint32_t height, uint32_t width,             \
                                                      uint32_t out_height, uint32_t out_width) {                      \
    max_pool_gradient<T>(xs, grad, out, count, channels, height, width, out_height, out_width);                       \
  }

AFFINE(float, 4, f32_4)
AFFINE(float, 1, f32_1)
AFFINE(__nv_bfloat16, 8, bf16_8)
AFFINE(__nv_bfloat16, 1, bf16_1)
POOL(float, f32)
POOL(__nv_bfloat16, bf16)
