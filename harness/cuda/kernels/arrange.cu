// Kernels that move pixels or channels, or add up every four pixels.
//
// A thread writes one pack of channels; `columns` is the number of packs in a row of channels.
#include "common.cuh"

template <typename T, int V>
__device__ void cat(const T *__restrict__ a, const T *__restrict__ b, T *__restrict__ out, uint32_t packs,
                    uint32_t columns_a, uint32_t columns_b) {
  uint32_t i = thread_number();
  if (i >= packs) return;
  uint32_t columns = columns_a + columns_b, column = i % columns;
  size_t row = i / columns;
  const T *from = column < columns_a ? a + (row * columns_a + column) * V : b + (row * columns_b + column - columns_a) * V;
  store<T, V>(out + (size_t)i * V, load<T, V>(from));
}

// Columns `first` to `first + columns_out` of rows that have `columns_in`.
template <typename T, int V>
__device__ void take(const T *__restrict__ xs, T *__restrict__ out, uint32_t packs, uint32_t columns_in, uint32_t first,
                     uint32_t columns_out) {
  uint32_t i = thread_number();
  if (i >= packs) return;
  size_t row = i / columns_out;
  store<T, V>(out + (size_t)i * V, load<T, V>(xs + (row * columns_in + first + i % columns_out) * V));
}

// What the three kernels below have in common: the pixel that the thread's pack belongs to.
struct Place {
  uint32_t column, x, y, image;

  __device__ Place(uint32_t i, uint32_t columns, uint32_t width, uint32_t height) {
    column = i % columns;
    i /= columns;
    x = i % width;
    i /= width;
    y = i % height;
    image = i / height;
  }
};

// Each input pixel to four, times `factor`; zero where there is no input.
template <typename T, int V>
__device__ void spread(const T *__restrict__ xs, T *__restrict__ out, uint32_t packs, uint32_t columns,
                       uint32_t in_height, uint32_t in_width, uint32_t out_height, uint32_t out_width, float factor) {
  uint32_t i = thread_number();
  if (i >= packs) return;
  Place to(i, columns, out_width, out_height);
  uint32_t y = to.y / 2, x = to.x / 2;
  Pack<T, V> pack = zeros<T, V>();
  if (y < in_height && x < in_width) {
    pack = load<T, V>(xs + ((((size_t)to.image * in_height + y) * in_width + x) * columns + to.column) * V);
    map(pack, [&](int, float value) { return value * factor; });
  }
  store<T, V>(out + (size_t)i * V, pack);
}

// The sum of every 2x2 input pixels, times `factor`.
template <typename T, int V>
__device__ void gather(const T *__restrict__ xs, T *__restrict__ out, uint32_t packs, uint32_t columns,
                       uint32_t in_height, uint32_t in_width, uint32_t out_height, uint32_t out_width, float factor) {
  uint32_t i = thread_number();
  if (i >= packs) return;
  Place to(i, columns, out_width, out_height);
  const T *from = xs + ((((size_t)to.image * in_height + 2 * to.y) * in_width + 2 * to.x) * columns + to.column) * V;
  size_t right = (size_t)columns * V, below = (size_t)in_width * right;
  Pack<T, V> a = load<T, V>(from), b = load<T, V>(from + right);
  Pack<T, V> c = load<T, V>(from + below), d = load<T, V>(from + below + right);
  map(a, [&](int j, float value) { return ((value + b.get(j)) + (c.get(j) + d.get(j))) * factor; });
  store<T, V>(out + (size_t)i * V, a);
}

// Each pixel to its own place in a larger image, which is zero elsewhere, or in a smaller one.
template <typename T, int V>
__device__ void place(const T *__restrict__ xs, T *__restrict__ out, uint32_t packs, uint32_t columns,
                      uint32_t in_height, uint32_t in_width, uint32_t out_height, uint32_t out_width) {
  uint32_t i = thread_number();
  if (i >= packs) return;
  Place to(i, columns, out_width, out_height);
  Pack<T, V> pack = zeros<T, V>();
  if (to.y < in_height && to.x < in_width) {
    pack = load<T, V>(xs + ((((size_t)to.image * in_height + to.y) * in_width + to.x) * columns + to.column) * V);
  }
  store<T, V>(out + (size_t)i * V, pack);
}

#define INSTANCES(T, V, NAME)                                                                                        \
  extern "C" __global__ void cat_##NAME(const T *a, const T *b, T *out, uint32_t packs, uint32_t columns_a,           \
                                        uint32_t columns_b) {                                                         \
    cat<T, V>(a, b, out, packs, columns_a, columns_b);                                                                \
  }                                                                                                                   \
  extern "C" __global__ void take_##NAME(const T *xs, T *out, uint32_t packs, uint32_t columns_in, uint32_t first,    \
                                         uint32_t columns_out) {                                                      \
    take<T, V>(xs, out, packs, columns_in, first, columns_out);                                                       \
  }                                                                                                                   \
  extern "C" __global__ void spread_##NAME(const T *xs, T *out, uint32_t packs, uint32_t columns, uint32_t in_height, \
                                           uint32_t in_width, uint32_t out_height, uint32_t out_width, float factor) {\
    spread<T, V>(xs, out, packs, columns, in_height, in_width, out_height, out_width, factor);                        \
  }                                                                                                                   \
  extern "C" __global__ void gather_##NAME(const T *xs, T *out, uint32_t packs, uint32_t columns, uint32_t in_height, \
                                           uint32_t in_width, uint32_t out_height, uint32_t out_width, float factor) {\
    gather<T, V>(xs, out, packs, columns, in_height, in_width, out_height, out_width, factor);                        \
  }                                                                                                                   \
  extern "C" __global__ void place_##NAME(const T *xs, T *out, uint32_t packs, uint32_t columns, uint32_t in_height,  \
                                          uint32_t in_width, uint32_t out_height, uint32_t out_width) {               \
    place<T, V>(xs, out, packs, columns, in_height, in_width, out_height, out_width);                                 \
  }

INSTANCES(float, 4, f32_4)
INSTANCES(float, 1, f32_1)
INSTANCES(__nv_bfloat16, 8, bf16_8)
INSTANCES(__nv_bfloat16, 1, bf16_1)
