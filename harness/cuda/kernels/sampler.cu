// What a sampler does with a network's answer. Products are rounded before they are added, as in
// the chain of single operations that the CPU runs, so that both give the same bits.
#include <stddef.h>

// out = conditional * (1 + beta) - unconditional * beta; both branches lie one behind the other.
extern "C" __global__ void guide_f32(const float *both, float *out, size_t n, float more, float beta) {
    size_t stride = (size_t)gridDim.x * blockDim.x;
    for (size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += stride) {
        out[i] = __fsub_rn(__fmul_rn(both[i], more), __fmul_rn(both[n + i], beta));
    }
}

// out = x + (x * along_x - eps * along_noise) * way
extern "C" __global__ void ddim_f32(const float *x, const float *eps, float *out, size_t n,
                                    float along_x, float along_noise, float way) {
    size_t stride = (size_t)gridDim.x * blockDim.x;
    for (size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += stride) {
        float delta = __fsub_rn(__fmul_rn(x[i], along_x), __fmul_rn(eps[i], along_noise));
        out[i] = __fadd_rn(x[i], __fmul_rn(delta, way));
    }
}
