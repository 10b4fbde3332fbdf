// Products of groups of rows, each with its own matrix, for CPUs; stagecraft/model/products.py calls it. Group e has the rows
// bounds[e] to bounds[e + 1], and of `w` [groups, out, in] matrix e.
#include <algorithm>
#include <cstdint>
#include <vector>

#include "blocks.hpp"

namespace {

// Rows and columns at a time: kernels are compiled for the sizes of blocks, of which there are few, not for those of groups.
constexpr int64_t BLOCK = 64;

template <typename F>
void in_blocks(int64_t first, int64_t end, F work) {
    for (int64_t at = first; at < end; at += BLOCK) work(at, std::min(BLOCK, end - at));
}

}  // namespace

extern "C" {

// y [rows, out] <- x [rows, in] w[e]^T
void grouped_product(int64_t groups, const int64_t* bounds, int64_t out, int64_t in, const float* x, const float* w, float* y) {
    std::vector<float> columns(in * BLOCK);
    for (int64_t e = 0; e < groups; ++e)
        if (bounds[e] < bounds[e + 1])
            in_blocks(0, out, [&](int64_t j, int64_t width) {
                transpose(width, in, w + (e * out + j) * in, in, columns.data(), BLOCK);
                in_blocks(bounds[e], bounds[e + 1], [&](int64_t i, int64_t rows) {
                    multiply(rows, width, in, x + i * in, in, columns.data(), BLOCK, y + i * out + j, out, false);
                });
            });
}

// d_x [rows, in] <- d_y [rows, out] w[e]
void grouped_data_gradient(int64_t groups, const int64_t* bounds, int64_t out, int64_t in, const float* d_y, const float* w, float* d_x) {
    for (int64_t e = 0; e < groups; ++e)
        in_blocks(0, in, [&](int64_t j, int64_t width) {
            in_blocks(bounds[e], bounds[e + 1], [&](int64_t i, int64_t rows) {
                multiply(rows, width, out, d_y + i * out, out, w + e * out * in + j, in, d_x + i * in + j, in, false);
            });
        });
}

// d_w[e] [out, in] <- d_y^T x over the group's rows; zeros where it has none
void grouped_weight_gradient(int64_t groups, const int64_t* bounds, int64_t out, int64_t in, const float* d_y, const float* x, float* d_w) {
    std::vector<float> columns(out * BLOCK);
    for (int64_t e = 0; e < groups; ++e) {
        float* to = d_w + e * out * in;
        if (bounds[e] == bounds[e + 1]) std::fill(to, to + out * in, 0.0f);
        in_blocks(bounds[e], bounds[e + 1], [&](int64_t i, int64_t rows) {
            transpose(rows, out, d_y + i * out, out, columns.data(), BLOCK);
            in_blocks(0, in, [&](int64_t j, int64_t width) {
                multiply(out, width, rows, columns.data(), BLOCK, x + i * in + j, in, to + j, in, i > bounds[e]);
            });
        });
    }
}
}
