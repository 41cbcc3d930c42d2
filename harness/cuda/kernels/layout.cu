// Ways between channels-first and channels-last order, through shared memory, so that both sides are
// read and written along their rows.
#include "common.cuh"

#define THREADS 256
#define TILE_PIXELS 128
#define TILE_CHANNELS 32

// A block moves up to 128 pixels of up to 32 channels. Odd rows, so that columns lie in different banks.
struct Tile {
  uint32_t pixel, pixels, channel, channels;
  size_t image;

  __device__ Tile(uint32_t all_pixels, uint32_t all_channels) {
    uint32_t across = (all_pixels + TILE_PIXELS - 1) / TILE_PIXELS;
    uint32_t down = (all_channels + TILE_CHANNELS - 1) / TILE_CHANNELS;
    uint32_t block = blockIdx.x;
    pixel = block % across * TILE_PIXELS;
    block /= across;
    channel = block % down * TILE_CHANNELS;
    image = block / down;
    pixels = min(TILE_PIXELS, all_pixels - pixel);
    channels = min(TILE_CHANNELS, all_channels - channel);
  }
};

// [batch, channels, pixels] to [batch, pixels, padded].
template <typename T>
__device__ void to_last(const float *__restrict__ xs, T *__restrict__ out, uint32_t channels, uint32_t padded,
                        uint32_t pixels) {
  __shared__ float cells[TILE_CHANNELS][TILE_PIXELS + 1];
  Tile tile(pixels, padded);
  for (uint32_t i = threadIdx.x; i < tile.channels * TILE_PIXELS; i += THREADS) {
    uint32_t c = i / TILE_PIXELS, p = i % TILE_PIXELS;
    bool inside = tile.channel + c < channels && p < tile.pixels;
    cells[c][p] = inside ? xs[(tile.image * channels + tile.channel + c) * pixels + tile.pixel + p] : 0.f;
  }
  __syncthreads();
  for (uint32_t i = threadIdx.x; i < tile.pixels * tile.channels; i += THREADS) {
    uint32_t p = i / tile.channels, c = i % tile.channels;
    out[(tile.image * pixels + tile.pixel + p) * padded + tile.channel + c] = from_float<T>(cells[c][p]);
  }
}

// [batch, pixels, padded] to [batch, channels, pixels].
template <typename T>
__device__ void to_first(const T *__restrict__ xs, float *__restrict__ out, uint32_t channels, uint32_t padded,
                         uint32_t pixels) {
  __shared__ float cells[TILE_CHANNELS][TILE_PIXELS + 1];
  Tile tile(pixels, channels);
  for (uint32_t i = threadIdx.x; i < tile.pixels * tile.channels; i += THREADS) {
    uint32_t p = i / tile.channels, c = i % tile.channels;
    cells[c][p] = to_float<T>(xs[(tile.image * pixels + tile.pixel + p) * padded + tile.channel + c]);
  }
  __syncthreads();
  for (uint32_t i = threadIdx.x; i < tile.channels * TILE_PIXELS; i += THREADS) {
    uint32_t c = i / TILE_PIXELS, p = i % TILE_PIXELS;
    if (p < tile.pixels) out[(tile.image * channels + tile.channel + c) * pixels + tile.pixel + p] = cells[c][p];
  }
}

extern __shared__ float weights[];

// [c_out, c_in, area] to [padded_out, area, padded_in]. A block moves `chunk` input channels of one output
// channel, through chunk * area numbers of shared memory.
template <typename T>
__device__ void pack(const float *__restrict__ weight, T *__restrict__ out, uint32_t c_out, uint32_t c_in,
                     uint32_t padded_in, uint32_t area, uint32_t chunk) {
  uint32_t chunks = (padded_in + chunk - 1) / chunk;
  uint32_t first = blockIdx.x % chunks * chunk, to = blockIdx.x / chunks;
  uint32_t given = to < c_out && first < c_in ? min(chunk, c_in - first) : 0;
  const float *from = weight + ((size_t)to * c_in + first) * area;
  for (uint32_t i = threadIdx.x; i < chunk * area; i += THREADS) weights[i] = i < given * area ? from[i] : 0.f;
  __syncthreads();
  uint32_t written = min(chunk, padded_in - first);
  for (uint32_t i = threadIdx.x; i < written * area; i += THREADS) {
    uint32_t cell = i / written, c = i % written;
    out[((size_t)to * area + cell) * padded_in + first + c] = from_float<T>(weights[c * area + cell]);
  }
}

// The way back; what was added is left out.
template <typename T>
__device__ void unpack(const T *__restrict__ packed, float *__restrict__ out, uint32_t c_in, uint32_t padded_in,
                       uint32_t area, uint32_t chunk) {
  uint32_t chunks = (c_in + chunk - 1) / chunk;
  uint32_t first = blockIdx.x % chunks * chunk, from = blockIdx.x / chunks;
  uint32_t given = min(chunk, c_in - first);
  for (uint32_t i = threadIdx.x; i < given * area; i += THREADS) {
    uint32_t cell = i / given, c = i % given;
    weights[c * area + cell] = to_float<T>(packed[((size_t)from * area + cell) * padded_in + first + c]);
  }
  __syncthreads();
  float *to = out + ((size_t)from * c_in + first) * area;
  for (uint32_t i = threadIdx.x; i < given * area; i += THREADS) to[i] = weights[i];
}

#define INSTANCES(T, NAME)                                                                                            \
  extern "C" __global__ void __launch_bounds__(THREADS)                                                               \
      to_last_##NAME(const float *xs, T *out, uint32_t channels, uint32_t padded, uint32_t pixels) {                  \
    to_last<T>(xs, out, channels, padded, pixels);                                                                    \
  }                                                                                                                   \
  extern "C" __global__ void __launch_bounds__(THREADS)                                                               \
      to_first_##NAME(const T *xs, float *out, uint32_t channels, uint32_t padded, uint32_t pixels) {                 \
    to_first<T>(xs, out, channels, padded, pixels);                                                                   \
  }                                                                                                                   \
  extern "C" __global__ void __launch_bounds__(THREADS)                                                               \
      pack_##NAME(const float *weight, T *out, uint32_t c_out, uint32_t c_in, uint32_t padded_in, uint32_t area,      \
                  uint32_t chunk) {                                                                                   \
    pack<T>(weight, out, c_out, c_in, padded_in, area, chunk);                                                        \
  }                                                                                                                   \
  extern "C" __global__ void __launch_bounds__(THREADS) unpack_##NAME(                                                \
      const T *packed, float *out, uint32_t c_in, uint32_t padded_in, uint32_t area, uint32_t chunk) {                \
    unpack<T>(packed, out, c_in, padded_in, area, chunk);                                                             \
  }

INSTANCES(float, f32)
INSTANCES(__nv_bfloat16, bf16)
