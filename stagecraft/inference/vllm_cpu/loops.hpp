// What the loops of this directory share: products of few vectors with a matrix, the formats that inputs are rounded to, and the batch of
// sequences that decode.
#pragma once

#include <algorithm>
#include <cstdint>

constexpr int64_t ROWS = 4;  // of a matrix at a time: so many sums hide the latency of one

// out_r <- row r of `matrix` . x, for R rows of n values.
template <int R>
inline void dots(const float* matrix, const float* x, int64_t n, float* out) {
    float sums[R] = {};
    for (int64_t i = 0; i < n; ++i)
        for (int r = 0; r < R; ++r) sums[r] += matrix[r * n + i] * x[i];
    for (int r = 0; r < R; ++r) out[r] = sums[r];
}

// For each of `count` vectors of n values: use(vector, row, their product), row by row of `matrix` [rows, n].
template <class Use>
inline void products(const float* matrix, int64_t rows, int64_t n, const float* const* vectors, int64_t count, Use use) {
    float sums[ROWS];
    for (int64_t row = 0; row < rows; row += ROWS) {
        const int64_t block = std::min(ROWS, rows - row);
        for (int64_t v = 0; v < count; ++v) {
            if (block == ROWS) {
                dots<ROWS>(matrix + row * n, vectors[v], n, sums);
            } else {
                for (int64_t r = 0; r < block; ++r) dots<1>(matrix + (row + r) * n, vectors[v], n, sums + r);
            }
            for (int64_t r = 0; r < block; ++r) use(v, row + r, sums[r]);
        }
    }
}

// Sequences that decode, as the Mamba-2 layers of a cache group see them: tokens starts[b] to starts[b + 1] are those of sequence b; its
// slots lie next to each other, `per_row` from one sequence to the next; it goes on from the state after its last accepted token.
struct Sequences {
    int64_t count, per_row;
    const int32_t *slots, *starts, *accepted;
    int64_t length(int64_t b) const { return starts[b + 1] - starts[b]; }
    int64_t slot(int64_t b, int64_t token) const { return slots[b * per_row + token]; }
};

constexpr int64_t UNROUNDED = 0, FP8 = 1, NVFP4 = 2;

extern "C" {
void round_to(int64_t format, float scale, const float* x, int64_t n, float* y);
void experts(const int64_t* sizes, float scale, const float* logits, const float* bias, const float* x, const float* up, const float* down,
             const float* input_scales, const float* hidden_scales, float* y);
void mixer(const int64_t* sizes, float epsilon, const float* projected, float* conv_states, const float* weight, const float* bias,
           float* states, const float* A, const float* D, const float* dt_bias, const float* norm, const int32_t* slots,
           const int32_t* starts, const int32_t* accepted, float* out);
}
