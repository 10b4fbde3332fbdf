// Products of small float32 matrices for this package's loops: oneDNN's kernels, compiled for each shape when it is first met.
#pragma once

#include <ATen/native/CPUBlas.h>

#include <cstdint>
#include <cstring>

// c [m, n] <- a [m, k] b [k, n], plus c if `add`; rows lie `by_...` values apart.
inline void multiply(int64_t m, int64_t n, int64_t k, const float* a, int64_t by_a, const float* b, int64_t by_b, float* c, int64_t by_c,
                     bool add) {
    at::native::cpublas::brgemm(m, n, k, by_a, by_b, by_c, add, a, b, c);
}

// Sixteen rows of sixteen values, rows and columns exchanged: values change places with those 1, 2, 4 and 8 rows away.
inline void transpose_square(const float* from, int64_t by_from, float* to, int64_t by_to, float factor) {
    constexpr int SIDE = 16;
    typedef float Row __attribute__((vector_size(4 * SIDE)));
    typedef int32_t Places __attribute__((vector_size(4 * SIDE)));
    Row rows[SIDE];
    for (int i = 0; i < SIDE; ++i) std::memcpy(&rows[i], from + i * by_from, sizeof(Row));
#pragma GCC unroll 4
    for (int step = 1; step < SIDE; step *= 2) {
        Places upper, lower;
        for (int c = 0; c < SIDE; ++c) {
            upper[c] = c & step ? SIDE + c - step : c;
            lower[c] = c & step ? SIDE + c : c + step;
        }
#pragma GCC unroll 16
        for (int i = 0; i < SIDE; ++i)
            if (!(i & step)) {
                const Row one = rows[i], other = rows[i + step];
                rows[i] = __builtin_shuffle(one, other, upper);
                rows[i + step] = __builtin_shuffle(one, other, lower);
            }
    }
    for (int i = 0; i < SIDE; ++i) {
        rows[i] *= factor;
        std::memcpy(to + i * by_to, &rows[i], sizeof(Row));
    }
}

// to [columns, rows] <- factor from [rows, columns]
inline void transpose(int64_t rows, int64_t columns, const float* from, int64_t by_from, float* __restrict to, int64_t by_to,
                      float factor = 1.0f) {
    const int64_t whole_rows = rows / 16 * 16, whole_columns = columns / 16 * 16;
    for (int64_t i = 0; i < whole_rows; i += 16)
        for (int64_t j = 0; j < whole_columns; j += 16)
            transpose_square(from + i * by_from + j, by_from, to + j * by_to + i, by_to, factor);
    for (int64_t i = 0; i < rows; ++i)
        for (int64_t j = i < whole_rows ? whole_columns : 0; j < columns; ++j) to[j * by_to + i] = factor * from[i * by_from + j];
}
