// RMSNorm over groups of features and its gradients, each in one pass over memory, for CPUs; stagecraft/model/norm.py calls it.
#include <cmath>
#include <cstdint>

extern "C" {

// x [rows, groups size], weight [groups size] -> y like x, and scale [rows, groups]: one over the root of each group's mean square.
void rms_norm_forward(int64_t rows, int64_t groups, int64_t size, float epsilon, const float* x, const float* weight, float* y,
                      float* scale) {
    for (int64_t row = 0; row < rows; ++row) {
        for (int64_t group = 0; group < groups; ++group, x += size, y += size) {
            const float* w = weight + group * size;
            float squares = 0.0f;
            for (int64_t i = 0; i < size; ++i) squares += x[i] * x[i];
            const float by = 1.0f / std::sqrt(squares / size + epsilon);
            for (int64_t i = 0; i < size; ++i) y[i] = x[i] * by * w[i];
            *scale++ = by;
        }
    }
}

// dy like y -> d_x like x, and d_weight, added to what is there.
void rms_norm_backward(int64_t rows, int64_t groups, int64_t size, const float* x, const float* weight, const float* scale,
                       const float* dy, float* __restrict d_x, float* __restrict d_weight) {
    for (int64_t row = 0; row < rows; ++row) {
        for (int64_t group = 0; group < groups; ++group, x += size, dy += size, d_x += size) {
            const float *w = weight + group * size, by = *scale++;
            float* __restrict d_w = d_weight + group * size;
            float along = 0.0f;
            for (int64_t i = 0; i < size; ++i) along += dy[i] * w[i] * x[i];
            const float back = along * by * by / size;
            for (int64_t i = 0; i < size; ++i) {
                d_x[i] = by * (dy[i] * w[i] - x[i] * back);
                d_w[i] += dy[i] * x[i] * by;
            }
        }
    }
}
}
