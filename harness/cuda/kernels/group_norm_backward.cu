// The gradients of group normalisation.
#include "group_norm.cuh"

// `partial` gets, for each image and channel, the gradients of weight and bias, and of the shift if there
// is one: [2 or 3, batch, channels]. Shared memory: 7 numbers for each channel, then 2 or 3 for each
// channel and line.
template <typename T, int V, int N>
__device__ __forceinline__ void backward(const T *__restrict__ xs, const T *__restrict__ grad, const float *__restrict__ weight,
                                         const float *__restrict__ bias, const float *__restrict__ shift, T *__restrict__ out,
                                         float *__restrict__ partial, uint32_t batch, const Task &task) {
  Part<V> part(task);
  Rows<T, V, N> rows(xs, part), grads(grad, part);
  uint32_t slab = task.slab;
  float *base = shared, *scale = base + slab, *weights = scale + slab, *biases = weights + slab;
  float *totals = biases + slab, *sums = totals + 3 * slab;
  statistics(rows, part, task, shift, base, sums, [&](uint32_t c, float deviation) {
    scale[c] = deviation;
    weights[c] = Block(task).of(weight, task.weight_stride)[c];
    biases[c] = Block(task).of(bias, task.bias_stride)[c];
  });

  // The sums over all pixels of dz xhat, dz, and x less its mean, where z = xhat weight + bias.
  constexpr int J = GO<V, N>;
  uint32_t pitch = part.pitch(), quantities = shift ? 3 : 2;
  auto slope = [&](float z) { return task.silu ? silu_slope(z) : 1.f; };
#pragma unroll
  for (int j = 0; j < V; j += J) {
    float b[J], s[J], w[J], o[J], dw[J], db[J], dx[J];
#pragma unroll
    for (int i = 0; i < J; i++) {
      uint32_t c = part.column * V + j + i;
      b[i] = base[c], s[i] = scale[c], w[i] = weights[c], o[i] = biases[c];
      dw[i] = db[i] = dx[i] = 0.f;
    }
    rows.each([&](uint32_t k, const Pack<T, V> &x) {
      Pack<T, V> again;
      if constexpr (N == 0) again = grads.read(k);
      change<T, V, J>(N > 0 ? grads.kept[N > 0 ? k : 0] : again, j, [&](int i, float g) {
        float centred = x.get(j + i) + b[i], normal = centred * s[i];
        float dz = g * slope(normal * w[i] + o[i]);
        dw[i] += dz * normal;
        db[i] += dz;
        dx[i] += centred;
        return dz;
      });
    });
    if (part.line < part.lines) {
#pragma unroll
      for (int i = 0; i < J; i++) {
        float *to = sums + (part.column * V + j + i) * pitch + part.line;
        to[0] = dw[i];
        to[slab * pitch] = db[i];
        if (shift) to[2 * slab * pitch] = dx[i];
      }
    }
  }
  __syncthreads();
  reduce(sums, pitch, part.lines, quantities * slab, 1, [&](uint32_t i, float total, uint32_t lane) {
    if (lane == 0) totals[i] = total;
  });
  __syncthreads();

  // The gradient of a number is dz a + centred b + c; a, b and c take the places of scale, weight, bias.
  float n = (float)task.group * (float)task.pixels;
  uint32_t lane = threadIdx.x % 32;
  size_t plane = (size_t)batch * task.channels;
  float *mine = partial + Block(task).image * task.channels + Block(task).channel;
  for (uint32_t g = threadIdx.x / 32; g < slab / task.group; g += blockDim.x / 32) {
    uint32_t from = g * task.group, end = from + task.group;
    float first = 0.f, second = 0.f;
    for (uint32_t c = from + lane; c < end; c += 32) {
      first += weights[c] * totals[slab + c];
      second += weights[c] * totals[c];
    }
    first = warp_sum(first) / n, second = warp_sum(second) / n;
    for (uint32_t c = from + lane; c < end; c += 32) {
      float s = scale[c], a = s * weights[c], b = -s * s * second, all = -s * first;
      mine[c] = totals[c];
      mine[plane + c] = totals[slab + c];
      if (shift) mine[2 * plane + c] = a * totals[slab + c] + b * totals[2 * slab + c] + all * (float)task.pixels;
      if constexpr (N > 0) {
        scale[c] = a, weights[c] = b, biases[c] = all;
      } else {
        totals[c] = a, totals[slab + c] = b, totals[2 * slab + c] = all;
      }
    }
  }
  __syncthreads();

#pragma unroll
  for (int j = 0; j < V; j += J) {
    uint32_t c = part.column * V + j;
    if constexpr (N > 0) {
      float centre[J], a[J], b[J], all[J];
#pragma unroll
      for (int i = 0; i < J; i++) centre[i] = base[c + i], a[i] = scale[c + i], b[i] = weights[c + i], all[i] = biases[c + i];
      rows.each([&](uint32_t k, const Pack<T, V> &x) {
        change<T, V, J>(grads.kept[k], j, [&](int i, float dz) { return dz * a[i] + (x.get(j + i) + centre[i]) * b[i] + all[i]; });
      });
    } else {
      rows.each([&](uint32_t k, const Pack<T, V> &x) {
        Pack<T, V> g = grads.read(k);
        change<T, V, J>(g, 0, [&](int i, float value) {
          float centred = x.get(i) + base[c + i];
          float dz = value * slope(centred * scale[c + i] * weights[c + i] + biases[c + i]);
          return dz * totals[c + i] + centred * totals[slab + c + i] + totals[2 * slab + c + i];
        });
        store<T, V>(out + part.place(k), g);
      });
    }
  }
  if constexpr (N > 0) {
    grads.each([&](uint32_t k, const Pack<T, V> &g) { store<T, V>(out + part.place(k), g); });
  }
}

// Three runs of numbers, one behind the other.
extern "C" __global__ void join(const float *a, const float *b, const float *c, float *out, uint32_t length_a,
                                uint32_t length_b, uint32_t length_c) {
  uint32_t i = thread_number();
  if (i < length_a) {
    out[i] = a[i];
  } else if (i - length_a < length_b) {
    out[i] = b[i - length_a];
  } else if (i - length_a - length_b < length_c) {
    out[i] = c[i - length_a - length_b];
  }
}

#define BACKWARD(T, V, N, NAME)                                                                                       \
  extern "C" __global__ void __launch_bounds__(512, 1) group_norm_backward_##NAME(                                    \
      const T *xs, const T *grad, const float *weight, const float *bias, const float *shift, T *out, float *partial, \
      uint32_t batch, uint32_t pixels, uint32_t channels, uint32_t slab, uint32_t group, uint32_t unit_bits,          \
      uint32_t weight_stride, uint32_t bias_stride, uint32_t shift_stride, float eps, uint32_t silu) {                \
    Task task{pixels, channels, slab, group, unit_bits, weight_stride, bias_stride, shift_stride, eps, silu};         \
    backward<T, V, N>(xs, grad, weight, bias, shift, out, partial, batch, task);                                      \
  }
#define INSTANCES(T, V, NAME)                                                                                         \
  BACKWARD(T, V, 2, NAME##_keep2)                                                                                     \
  BACKWARD(T, V, 4, NAME##_keep4)                                                                                     \
  BACKWARD(T, V, 8, NAME##_keep8)                                                                                     \
  BACKWARD(T, V, 0, NAME##_again)                                                                                     \
  BACKWARD(T, 1, 0, NAME##_single)

INSTANCES(float, 4, f32)
INSTANCES(__nv_bfloat16, 8, bf16)
