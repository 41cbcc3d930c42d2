// What group normalisation and its gradients share: how the work is spread, and the statistics.
//
// A block has all pixels of a slab of channels of one image; a slab is made of whole groups. A thread
// has one column, that is V channels next to each other, of every `lines`-th pixel. With N > 0 it keeps
// its packs, at most N, in registers: then everything is read once. With N = 0 it reads them again in
// each pass. Sums are taken in a fixed order: per thread, then by a warp over the lines.
#pragma once
#include "common.cuh"

// Sizes, and where the parameters of an image are: `stride` numbers behind those of the image before it,
// 0 where all images share them.
struct Task {
  uint32_t pixels, channels;
  uint32_t slab, group; // channels of a block and of a group
  uint32_t unit_bits;   // 2^unit_bits channels of a pack lie in one group
  uint32_t weight_stride, bias_stride, shift_stride;
  float eps;
  uint32_t silu;
};

// The image of a block and the first of its channels. Cheaper to find out again than to keep.
struct Block {
  uint32_t image, channel;

  __device__ explicit Block(const Task &task) {
    uint32_t block, slabs = task.channels / task.slab;
    asm volatile("mov.u32 %0, %%ctaid.x;" : "=r"(block));
    image = block / slabs;
    channel = block % slabs * task.slab;
  }

  // Where the parameters of the block's channels are.
  __device__ const float *of(const float *all, uint32_t stride) const { return all + image * stride + channel; }
};

// The part of a task that a thread has.
template <int V> struct Part {
  uint32_t columns, lines, column, line, mine;
  uint32_t first, step; // the thread's first number, and from pixel to pixel

  __device__ explicit Part(const Task &task) {
    columns = task.slab / V;
    lines = blockDim.x / columns;
    column = threadIdx.x % columns;
    line = threadIdx.x / columns;
    // Threads behind the last line have no pixels, but take part in the sums.
    mine = line < lines && line < task.pixels ? (task.pixels - line - 1) / lines + 1 : 0;
    Block block(task);
    first = (block.image * task.pixels + line) * task.channels + block.channel + column * V;
    step = lines * task.channels;
  }

  // Where a pack begins. Rust checks that a tensor has fewer than 2^32 numbers.
  __device__ __forceinline__ uint32_t place(uint32_t k) const { return first + k * step; }

  // Numbers of shared memory from channel to channel, or unit to unit, of one number for each line.
  __device__ uint32_t pitch() const { return lines + 4; }
};

// The packs of a thread.
template <typename T, int V, int N> struct Rows {
  Pack<T, V> kept[N > 0 ? N : 1];
  const T *xs;
  uint32_t first, step, mine;

  __device__ __forceinline__ Rows(const T *xs, const Part<V> &part) : Rows(xs, part.first, part.step, part.mine) {}

  __device__ __forceinline__ Rows(const T *xs, uint32_t first, uint32_t step, uint32_t mine)
      : xs(xs), first(first), step(step), mine(mine) {
    if constexpr (N > 0) {
#pragma unroll
      for (uint32_t k = 0; k < N; k++) kept[k] = k < mine ? read(k) : zeros<T, V>();
    }
  }

  __device__ __forceinline__ Pack<T, V> read(uint32_t k) const { return load<T, V>(xs + (first + k * step)); }

  template <typename F> __device__ __forceinline__ void each(F f) {
    if constexpr (N > 0) {
#pragma unroll
      for (uint32_t k = 0; k < N; k++) {
        if (k < mine) f(k, kept[k]);
      }
    } else {
      for (uint32_t k = 0; k < mine; k++) {
        Pack<T, V> pack = read(k);
        f(k, pack);
      }
    }
  }
};

// Channels of a pack that are worked on in one go. Packs in registers are gone through once for each
// two channels, which needs few other registers.
template <int V, int N> constexpr int GO = N > 0 ? 2 : V;

// Works on channels j to j + J of a pack: `f` of i and the number gives the new number.
template <typename T, int V, int J, typename F> __device__ __forceinline__ void change(Pack<T, V> &x, int j, F f) {
  if constexpr (J == 1) {
    x.set(j, f(0, x.get(j)), 0.f);
  } else {
#pragma unroll
    for (int i = 0; i < J; i += 2) x.set(j + i, f(i, x.get(j + i)), f(i + 1, x.get(j + i + 1)));
  }
}

// A warp for each of `count` things adds up the `lines` numbers of each of its `width` rows; `f` gets the
// number of the thing and the sum, in all lanes.
template <typename F>
__device__ __forceinline__ void reduce(const float *rows, uint32_t pitch, uint32_t lines, uint32_t count, uint32_t width, F f) {
  uint32_t lane = threadIdx.x % 32;
#pragma unroll 1
  for (uint32_t i = threadIdx.x / 32; i < count; i += blockDim.x / 32) {
    float sum = 0.f;
#pragma unroll 1
    for (uint32_t row = 0; row < width; row++) {
#pragma unroll 4
      for (uint32_t line = lane; line < lines; line += 32) sum += rows[(i * width + row) * pitch + line];
    }
    f(i, warp_sum(sum), lane);
  }
}

// Writes for each channel of the slab what is to be added to a number to give it mean zero, and calls
// `finish` with the channel and one over the standard deviation of its group.
template <typename T, int V, int N, typename F>
__device__ __forceinline__ void statistics(Rows<T, V, N> &xs, const Part<V> &part, const Task &task, const float *shift,
                                           float *base, float *sums, F finish) {
  uint32_t pitch = part.pitch(), unit = 1u << task.unit_bits;
  uint32_t groups = task.slab / task.group, units = task.group >> task.unit_bits;
  float n = (float)task.group * (float)task.pixels;
  const float *shifts = shift ? Block(task).of(shift, task.shift_stride) : nullptr;
  constexpr int J = GO<V, N>;

  float sum = 0.f;
#pragma unroll
  for (int j = 0; j < V; j += J) {
    float s[J];
#pragma unroll
    for (int i = 0; i < J; i++) s[i] = 0.f;
    xs.each([&](uint32_t, const Pack<T, V> &x) {
#pragma unroll
      for (int i = 0; i < J; i++) s[i] += x.get(j + i);
    });
#pragma unroll
    for (int i = 0; i < J; i++) {
      uint32_t c = part.column * V + j + i;
      sum += s[i] + (shifts ? (float)part.mine * __ldg(shifts + c) : 0.f);
      if (((j + i + 1) & (unit - 1)) == 0) {
        if (part.line < part.lines) sums[(c >> task.unit_bits) * pitch + part.line] = sum;
        sum = 0.f;
      }
    }
  }
  __syncthreads();
  reduce(sums, pitch, part.lines, groups, units, [&](uint32_t g, float total, uint32_t lane) {
#pragma unroll 1
    for (uint32_t c = g * task.group + lane; c < (g + 1) * task.group; c += 32) {
      base[c] = (shifts ? __ldg(shifts + c) : 0.f) - total / n;
    }
  });
  __syncthreads();

#pragma unroll
  for (int j = 0; j < V; j += J) {
    float s[J], b[J];
#pragma unroll
    for (int i = 0; i < J; i++) s[i] = 0.f, b[i] = base[part.column * V + j + i];
    xs.each([&](uint32_t, const Pack<T, V> &x) {
#pragma unroll
      for (int i = 0; i < J; i++) {
        float d = x.get(j + i) + b[i];
        s[i] += d * d;
      }
    });
#pragma unroll
    for (int i = 0; i < J; i++) {
      sum += s[i];
      if (((j + i + 1) & (unit - 1)) == 0) {
        uint32_t c = part.column * V + j + i;
        if (part.line < part.lines) sums[(c >> task.unit_bits) * pitch + part.line] = sum;
        sum = 0.f;
      }
    }
  }
  __syncthreads();
  reduce(sums, pitch, part.lines, groups, units, [&](uint32_t g, float total, uint32_t lane) {
    float deviation = rsqrtf(total / n + task.eps);
#pragma unroll 1
    for (uint32_t c = g * task.group + lane; c < (g + 1) * task.group; c += 32) finish(c, deviation);
  });
  __syncthreads();
}

extern __shared__ float shared[];
