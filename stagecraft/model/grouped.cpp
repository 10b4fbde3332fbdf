// Products of groups of rows, each with its own matrix, by BLAS, for CPUs; stagecraft/model/products.py calls it. Group e has the rows
// bounds[e] to bounds[e + 1], and of `w` [groups, out, in] matrix e. What BLAS has column by column lies here row by row, transposed.
#include <algorithm>
#include <cstdint>

namespace {

// c <- alpha op(a) op(b) + beta c
using Gemm = void (*)(const char*, const char*, const int32_t*, const int32_t*, const int32_t*, const float*, const float*, const int32_t*,
                      const float*, const int32_t*, const float*, float*, const int32_t*);

// c [m, n] <- op(a) [m, k] op(b) [k, n]; `first` and `second` are the lengths of a column of a and of b.
void multiply(Gemm gemm, char op_a, char op_b, int64_t m, int64_t n, int64_t k, const float* a, int64_t first, const float* b, int64_t second,
              float* c) {
    const auto rows = static_cast<int32_t>(m), columns = static_cast<int32_t>(n), sum = static_cast<int32_t>(k),
               by_a = static_cast<int32_t>(first), by_b = static_cast<int32_t>(second);
    const float one = 1.0f, zero = 0.0f;
    gemm(&op_a, &op_b, &rows, &columns, &sum, &one, a, &by_a, b, &by_b, &zero, c, &rows);
}

}  // namespace

extern "C" {

// y [rows, out] <- x [rows, in] w[e]^T
void grouped_product(Gemm gemm, int64_t groups, const int64_t* bounds, int64_t out, int64_t in, const float* x, const float* w, float* y) {
    for (int64_t e = 0; e < groups; ++e)
        if (const int64_t rows = bounds[e + 1] - bounds[e])
            multiply(gemm, 'T', 'N', out, rows, in, w + e * out * in, in, x + bounds[e] * in, in, y + bounds[e] * out);
}

// d_x [rows, in] <- d_y [rows, out] w[e]
void grouped_data_gradient(Gemm gemm, int64_t groups, const int64_t* bounds, int64_t out, int64_t in, const float* d_y, const float* w,
                           float* d_x) {
    for (int64_t e = 0; e < groups; ++e)
        if (const int64_t rows = bounds[e + 1] - bounds[e])
            multiply(gemm, 'N', 'N', in, rows, out, w + e * out * in, in, d_y + bounds[e] * out, out, d_x + bounds[e] * in);
}

// d_w[e] [out, in] <- d_y^T x over the group's rows; zeros where it has none
void grouped_weight_gradient(Gemm gemm, int64_t groups, const int64_t* bounds, int64_t out, int64_t in, const float* d_y, const float* x,
                             float* d_w) {
    for (int64_t e = 0; e < groups; ++e) {
        float* to = d_w + e * out * in;
        if (const int64_t rows = bounds[e + 1] - bounds[e])
            multiply(gemm, 'N', 'T', in, out, rows, x + bounds[e] * in, in, d_y + bounds[e] * out, out, to);
        else
            std::fill(to, to + out * in, 0.0f);
    }
}
}
