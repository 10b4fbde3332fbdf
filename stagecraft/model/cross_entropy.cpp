// Cross-entropy and its gradient with one exponential per logit, for CPUs; stagecraft/model/cross_entropy.py calls it.
#include <algorithm>
#include <cmath>
#include <cstdint>

extern "C" {

// logits [rows, classes], labels [rows] -> loss [rows], and unless it is null softmax [rows, classes].
void cross_entropy_forward(int64_t rows, int64_t classes, const float* logits, const int64_t* labels, float* loss, float* softmax) {
    for (int64_t row = 0; row < rows; ++row, logits += classes) {
        float highest = logits[0], sum = 0.0f;
        for (int64_t i = 1; i < classes; ++i) highest = std::max(highest, logits[i]);
        if (softmax) {
            for (int64_t i = 0; i < classes; ++i) {
                softmax[i] = std::exp(logits[i] - highest);
                sum += softmax[i];
            }
            const float scale = 1.0f / sum;
            for (int64_t i = 0; i < classes; ++i) softmax[i] *= scale;
            softmax += classes;
        } else {
            for (int64_t i = 0; i < classes; ++i) sum += std::exp(logits[i] - highest);
        }
        loss[row] = std::log(sum) + highest - logits[labels[row]];
    }
}

// softmax <- the gradient of the logits, for d_loss [rows].
void cross_entropy_backward(int64_t rows, int64_t classes, const int64_t* labels, const float* d_loss, float* softmax) {
    for (int64_t row = 0; row < rows; ++row, softmax += classes) {
        for (int64_t i = 0; i < classes; ++i) softmax[i] *= d_loss[row];
        softmax[labels[row]] -= d_loss[row];
    }
}
}
