// Squared ReLU, weighed by row, and its gradients, each in one pass over memory, for CPUs; stagecraft/model/activation.py calls it.
#include <cstdint>

#pragma GCC optimize("no-finite-math-only")  // a value that is no number stays none, so that the step is skipped

namespace {

float above(float x) { return x < 0.0f ? 0.0f : x; }

}  // namespace

extern "C" {

// x [rows, features], weight [rows] or null for ones -> y = max(x, 0)^2 weight.
void squared_relu_forward(int64_t rows, int64_t features, const float* x, const float* weight, float* __restrict y) {
    for (int64_t row = 0; row < rows; ++row, x += features, y += features) {
        const float by = weight ? weight[row] : 1.0f;
        for (int64_t i = 0; i < features; ++i) {
            const float a = above(x[i]);
            y[i] = a * a * by;
        }
    }
}

// dy like y -> d_x like x and, unless they are null, d_weight [rows].
void squared_relu_backward(int64_t rows, int64_t features, const float* x, const float* weight, const float* dy, float* __restrict d_x,
                           float* d_weight) {
    for (int64_t row = 0; row < rows; ++row, x += features, dy += features, d_x += features) {
        const float by = weight ? 2.0f * weight[row] : 2.0f;
        float sum = 0.0f;
        for (int64_t i = 0; i < features; ++i) {
            const float a = above(x[i]), slope = a * dy[i];
            d_x[i] = slope * by;
            sum += a * slope;
        }
        if (d_weight) d_weight[row] = sum;
    }
}
}
