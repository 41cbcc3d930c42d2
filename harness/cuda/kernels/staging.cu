// Pixels as they lie in prepared images, as the numbers that networks take.
#include <stddef.h>
#include <stdint.h>

// [images, plane, 3] bytes to [images, 3, plane], as (byte / 255 - mean) / std of the channel;
// `pixels` is images * plane.
extern "C" __global__ void pixels_f32(const uint8_t *bytes, float *out, size_t pixels, size_t plane,
                                      float mean0, float mean1, float mean2, float std0, float std1,
                                      float std2) {
    const float mean[3] = {mean0, mean1, mean2};
    const float std[3] = {std0, std1, std2};
    size_t stride = (size_t)gridDim.x * blockDim.x;
    for (size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x; i < pixels; i += stride) {
        size_t image = i / plane, pixel = i % plane;
#pragma unroll
        for (int channel = 0; channel < 3; channel++) {
            // Rounded step by step, as the CPU does.
            float value = __fdiv_rn((float)bytes[3 * i + channel], 255.0f);
            value = __fdiv_rn(__fsub_rn(value, mean[channel]), std[channel]);
            out[(3 * image + channel) * plane + pixel] = value;
        }
    }
}
