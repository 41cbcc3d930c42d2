// Training images from 8-bit pixels: picked, cropped out of a black border, mirrored, scaled; and
// noised. Rounded step by step as the CPU does it, so that images are the same on both.
#include <stdint.h>

#define THREADS 256

// picks[image] = {index, dy, dx, is_mirrored}: which image, and what is cut out of it.
// pixels [n, height, width, 3], out [batch, 3, height, width] = pixel / 255 * factor + shift. One thread
// makes one pixel: it reads 3 bytes and writes 12.
extern "C" __global__ void __launch_bounds__(THREADS)
pick_images(uint32_t n, uint32_t height, uint32_t width, uint32_t padding, float factor, float shift, const uint8_t *pixels,
            const uint32_t *picks, float *out) {
  uint32_t i = blockIdx.x * THREADS + threadIdx.x;
  if (i >= n) return;
  uint32_t plane = height * width, image = i / plane, place = i % plane, y = place / width, x = place % width;
  const uint32_t *pick = picks + 4 * image;
  uint32_t column = pick[3] ? width - 1 - x : x;
  // Below the border these wrap around to more than any height or width.
  uint32_t from_y = y + pick[1] - padding, from_x = column + pick[2] - padding;
  float rgb[3] = {0.f, 0.f, 0.f};
  if (from_y < height && from_x < width) {
    const uint8_t *pixel = pixels + ((size_t)pick[0] * plane + from_y * width + from_x) * 3;
    for (int c = 0; c < 3; c++) rgb[c] = __fdiv_rn((float)pixel[c], 255.f);
  }
  float *target = out + (size_t)image * 3 * plane + place;
  for (int c = 0; c < 3; c++) target[(size_t)c * plane] = __fadd_rn(__fmul_rn(rgb[c], factor), shift);
}

// out[image] = xs[image] * signal[image] + noise[image] * scale[image]; `per_image` numbers each. Reads
// 8 bytes a number and writes 4.
extern "C" __global__ void __launch_bounds__(THREADS)
diffuse(size_t n, uint32_t per_image, const float *xs, const float *noise, const float *signal, const float *scale, float *out) {
  size_t i = blockIdx.x * (size_t)THREADS + threadIdx.x;
  if (i >= n) return;
  size_t image = i / per_image;
  out[i] = __fadd_rn(__fmul_rn(xs[i], signal[image]), __fmul_rn(noise[i], scale[image]));
}

// How far off a prediction is.
__device__ __forceinline__ float off(float eps, float noise, uint32_t is_linear) {
  float d = eps - noise;
  return is_linear ? fabsf(d) : d * d;
}

// sums[image] = the sum over an image of squares or absolute values of `eps - noise`; one block an image.
// Reads 8 bytes a number.
extern "C" __global__ void __launch_bounds__(THREADS)
image_losses(uint32_t per_image, uint32_t is_linear, const float *eps, const float *noise, float *sums) {
  __shared__ float warps[THREADS / 32];
  size_t start = blockIdx.x * (size_t)per_image;
  // Sums of a few dozen numbers each, then of 256 of those: as exact as `f32` can be.
  float sum = 0.f;
  for (uint32_t i = threadIdx.x; i < per_image; i += THREADS) sum += off(eps[start + i], noise[start + i], is_linear);
  for (int lane = 16; lane > 0; lane /= 2) sum += __shfl_down_sync(0xffffffffu, sum, lane);
  if ((threadIdx.x & 31) == 0) warps[threadIdx.x / 32] = sum;
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (int warp = 1; warp < THREADS / 32; warp++) sum += warps[warp];
  sums[blockIdx.x] = sum;
}

// loss = the mean of the images' sums, added in their order. One warp.
extern "C" __global__ void __launch_bounds__(32)
mean_loss(uint32_t n, const float *sums, float *loss) {
  double sum = 0;
  for (uint32_t i = threadIdx.x; i < n; i += 32) sum += sums[i];
  for (int lane = 16; lane > 0; lane /= 2) sum += __shfl_down_sync(0xffffffffu, sum, lane);
  if (threadIdx.x == 0) *loss = (float)(sum / n);
}

// out = the gradient of the loss with respect to `eps`, where `gradient` is that of what follows from
// the loss. Reads 8 bytes a number and writes 4.
extern "C" __global__ void __launch_bounds__(THREADS)
loss_gradient(size_t n, float per_image, uint32_t is_linear, const float *eps, const float *noise, const float *gradient, float *out) {
  size_t i = blockIdx.x * (size_t)THREADS + threadIdx.x;
  if (i >= n) return;
  float d = eps[i] - noise[i], share = *gradient * per_image;
  out[i] = is_linear ? (d > 0.f ? share : d < 0.f ? -share : d * share) : 2.f * d * share;
}
