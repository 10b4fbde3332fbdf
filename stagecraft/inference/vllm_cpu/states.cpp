// Mamba-2's mixer for sequences that decode, one token each or the several of a step that verifies drafts; mamba_speculative.py, which says
// how the states lie, and backbone.cpp call it. All values are float32; a stride is the distance of two neighbours in floats.
#include "loops.hpp"

#include <cmath>
#include <vector>

namespace {

float softplus(float v) { return v > 20.0f ? v : std::log1p(std::exp(v)); }

}  // namespace

extern "C" {

// sizes: sequences, slots per sequence, channels, width, silu, then strides: x by token, states by slot, channel and time.
// out [tokens, channels], weight [width, channels].
void convolve(const int64_t* sizes, const float* x, float* states, const float* weight, const float* bias, const int32_t* slots,
                         const int32_t* starts, const int32_t* accepted, float* out) {
    const Sequences sequences{sizes[0], sizes[1], slots, starts, accepted};
    const int64_t channels = sizes[2], width = sizes[3], history = width - 1, by_token = sizes[5];
    const int64_t by_slot = sizes[6], by_channel = sizes[7], by_time = sizes[8];
    std::vector<float> window;  // [history + tokens, channels]
    for (int64_t b = 0; b < sequences.count; ++b) {
        const int64_t length = sequences.length(b);
        if (length == 0) continue;
        float* state = states + sequences.slot(b, 0) * by_slot;
        window.resize((history + length) * channels);
        for (int64_t t = 0; t < history; ++t)
            for (int64_t c = 0; c < channels; ++c)
                window[t * channels + c] = state[(accepted[b] - 1 + t) * by_time + c * by_channel];
        for (int64_t t = 0; t < length; ++t) {
            const float* row = x + (starts[b] + t) * by_token;
            std::copy(row, row + channels, window.begin() + (history + t) * channels);
        }
        for (int64_t t = 0; t < length; ++t) {
            float* y = out + (starts[b] + t) * channels;
            for (int64_t c = 0; c < channels; ++c) y[c] = bias ? bias[c] : 0.0f;
            for (int64_t j = 0; j < width; ++j)
                for (int64_t c = 0; c < channels; ++c) y[c] += weight[j * channels + c] * window[(t + j) * channels + c];
            if (sizes[4])
                for (int64_t c = 0; c < channels; ++c) y[c] /= 1.0f + std::exp(-y[c]);
        }
        for (int64_t t = 0; t < history - 1 + length; ++t)
            for (int64_t c = 0; c < channels; ++c) state[t * by_time + c * by_channel] = window[(t + 1) * channels + c];
    }
}

// sizes: sequences, slots per sequence, heads, head size p, groups, state n, softplus, then strides: state by slot, x, dt, B, C and out by
// token, A, D and dt_bias by head. A state is [heads, p, n].
void recur(const int64_t* sizes, float* states, const float* x, const float* dt, const float* A, const float* B, const float* C,
                        const float* D, const float* dt_bias, const int32_t* slots, const int32_t* starts, const int32_t* accepted,
                        float* out) {
    const Sequences sequences{sizes[0], sizes[1], slots, starts, accepted};
    const int64_t heads = sizes[2], size = sizes[3], groups = sizes[4], n = sizes[5];
    for (int64_t b = 0; b < sequences.count; ++b) {
        const int64_t source = sequences.slot(b, accepted[b] - 1) * sizes[7];
        for (int64_t head = 0; head < heads; ++head) {
            const int64_t at = head * size * n, group = head / (heads / groups) * n;
            const float* before = states + source + at;
            for (int64_t t = 0; t < sequences.length(b); ++t) {
                const int64_t token = starts[b] + t;
                const float raw = dt[token * sizes[9] + head] + dt_bias[head * sizes[15]], step = sizes[6] ? softplus(raw) : raw;
                const float keep = std::exp(step * A[head * sizes[13]]);
                const float *Bt = B + token * sizes[10] + group, *Ct = C + token * sizes[11] + group;
                const float* xt = x + token * sizes[8] + head * size;
                float *y = out + token * sizes[12] + head * size, *after = states + sequences.slot(b, t) * sizes[7] + at;
                for (int64_t p = 0; p < size; ++p) {
                    float sum = 0.0f;
                    const float given = step * xt[p];
#pragma GCC ivdep  // `after` is `before` or elsewhere, never askew
                    for (int64_t i = 0; i < n; ++i) {
                        const float now = before[p * n + i] * keep + given * Bt[i];
                        after[p * n + i] = now;
                        sum += now * Ct[i];
                    }
                    y[p] = sum + D[head * sizes[14]] * xt[p];
                }
                before = after;
            }
        }
    }
}

// Convolution, recurrence, gate and norm. Row t of `projected` is gate [heads p], then x [heads p], B [g n], C [g n], which pass the
// convolution, then the raw time step [heads]. sizes: sequences, slots per sequence, tokens, heads, p, groups, n, width, values per group of
// the norm, then strides: projected by token, conv_states by slot, channel and time, states by slot. out [tokens, heads p].
void mixer(const int64_t* sizes, float epsilon, const float* projected, float* conv_states, const float* weight, const float* bias,
           float* states, const float* A, const float* D, const float* dt_bias, const float* norm, const int32_t* slots,
           const int32_t* starts, const int32_t* accepted, float* out) {
    const int64_t sequences = sizes[0], per_row = sizes[1], tokens = sizes[2], heads = sizes[3], size = sizes[4], groups = sizes[5];
    const int64_t n = sizes[6], inner = heads * size, channels = inner + 2 * groups * n, normed = sizes[8], row = sizes[9];
    std::vector<float> u(tokens * channels);
    const int64_t of_convolution[] = {sequences, per_row, channels, sizes[7], 1, row, sizes[10], sizes[11], sizes[12]};
    convolve(of_convolution, projected + inner, conv_states, weight, bias, slots, starts, accepted, u.data());
    const int64_t of_recurrence[] = {sequences, per_row, heads, size, groups, n, 1, sizes[13], channels, row, channels, channels, inner,
                                     1, 1, 1};
    recur(of_recurrence, states, u.data(), projected + inner + channels, A, u.data() + inner, u.data() + inner + groups * n, D, dt_bias,
            slots, starts, accepted, out);
    for (int64_t t = 0; t < tokens; ++t) {
        const float* gate = projected + t * row;
        for (int64_t first = 0; first < inner; first += normed) {
            float *y = out + t * inner + first, sum = 0.0f;
            const float *z = gate + first, *scale = norm + first;
            for (int64_t i = 0; i < normed; ++i) y[i] *= z[i] / (1.0f + std::exp(-z[i]));
            for (int64_t i = 0; i < normed; ++i) sum += y[i] * y[i];
            const float factor = 1.0f / std::sqrt(sum / normed + epsilon);
            for (int64_t i = 0; i < normed; ++i) y[i] *= factor * scale[i];
        }
    }
}

}  // extern "C"
