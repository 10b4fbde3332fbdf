// Causal attention of stretches of tokens and its gradients, in blocks of keys and queries, for CPUs; stagecraft/model/attend.py calls it.
//
// As in FlashAttention (Dao et al. 2022, arXiv 2205.14135; Dao 2023, arXiv 2307.08691) no score outlives its block but as the logarithm of
// its query's sum, from which the way back makes it again. Scores lie with queries next to each other, so that maxima and sums of all
// queries of a block are taken at once.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "blocks.hpp"

namespace {

constexpr int64_t BLOCK = 64, AREA = BLOCK * BLOCK;

struct Sizes {
    int64_t batch, heads, groups, size, stretches;
};

// Queries first to end, which see the keys start to until: the last query all, each before it one less.
struct Stretch {
    int64_t first, end, start, until;
    int64_t queries() const { return end - first; }
    int64_t keys() const { return until - start; }
    int64_t blocks() const { return (keys() + BLOCK - 1) / BLOCK; }
    int64_t offset() const { return keys() - queries(); }
    // Blocks of keys that `rows` queries from the `at`-th on see some of.
    int64_t visible(int64_t at, int64_t rows) const { return (at + rows + offset() + BLOCK - 1) / BLOCK; }
    // Whether a query from the `at`-th on does not see a key of block `j`.
    bool hides(int64_t j, int64_t at) const { return (j + 1) * BLOCK - 1 > at + offset(); }
};

// [tokens, batch, heads, size] with any strides but that of the last dimension, which is 1.
struct View {
    float* data;
    int64_t by_token, by_row, by_head;
    View(const float* data, const int64_t* strides)
        : data(const_cast<float*>(data)), by_token(strides[0]), by_row(strides[1]), by_head(strides[2]) {}
    View(const float* data, int64_t batch, int64_t heads, int64_t size)
        : data(const_cast<float*>(data)), by_token(batch * heads * size), by_row(heads * size), by_head(size) {}
    float* at(int64_t token, int64_t row, int64_t head) const { return data + token * by_token + row * by_row + head * by_head; }
};

// Rows next to each other, zeros after them up to whole blocks.
void gather(int64_t rows, int64_t size, const float* from, int64_t by, float* to, float factor = 1.0f) {
    for (int64_t i = 0; i < rows; ++i)
        for (int64_t j = 0; j < size; ++j) to[i * size + j] = factor * from[i * by + j];
    std::fill(to + rows * size, to + (rows + BLOCK - 1) / BLOCK * BLOCK * size, 0.0f);
}

// [rows, size] as blocks [size, BLOCK] with zeros after the last row.
void gather_columns(int64_t rows, int64_t size, const float* from, int64_t by, float* to, float factor = 1.0f) {
    for (int64_t i = 0; i < rows; i += BLOCK, to += size * BLOCK) {
        if (rows - i < BLOCK) std::fill(to, to + size * BLOCK, 0.0f);
        transpose(std::min(BLOCK, rows - i), size, from + i * by, by, to, BLOCK, factor);
    }
}

// Of block `j` of keys, row `r`: the first of the queries from `at` on that sees it.
int64_t seeing(int64_t j, int64_t r, int64_t at, int64_t offset) { return std::clamp<int64_t>(j * BLOCK + r - at - offset, 0, BLOCK); }

// Weights of keys that queries do not see are zero.
void hide(float* weights, int64_t j, int64_t at, int64_t offset) {
    for (int64_t r = 0; r < BLOCK; ++r) std::fill(weights + r * BLOCK, weights + r * BLOCK + seeing(j, r, at, offset), 0.0f);
}

}  // namespace

extern "C" {

// q [t, batch, heads, size], k and v [T, batch, groups, size] with strides; out [t, batch, heads, size], sums [batch, heads, t].
void attend_forward(const int64_t* sizes, const int64_t* of_stretches, float scale, const float* q_data, const int64_t* q_strides,
                    const float* k_data, const int64_t* k_strides, const float* v_data, const int64_t* v_strides, int64_t tokens,
                    float* out_data, float* sums) {
    Sizes s;
    std::copy(sizes, sizes + 5, &s.batch);
    const View q(q_data, q_strides), k(k_data, k_strides), v(v_data, v_strides), out(out_data, s.batch, s.heads, s.size);
    std::vector<float> keys, values, scores, queries(s.size * BLOCK), sum(s.size * BLOCK);
    float largest[BLOCK], total[BLOCK];
    for (int64_t n = 0; n < s.stretches; ++n) {
        Stretch part;
        std::copy(of_stretches + 4 * n, of_stretches + 4 * n + 4, &part.first);
        for (auto* kept : {&keys, &values}) kept->resize(part.blocks() * BLOCK * s.size);
        scores.resize(part.blocks() * AREA);
        for (int64_t b = 0; b < s.batch; ++b)
            for (int64_t head = 0; head < s.heads; ++head) {
                if (const int64_t each = s.heads / s.groups; head % each == 0) {
                    gather(part.keys(), s.size, k.at(part.start, b, head / each), k.by_token, keys.data());
                    gather_columns(part.keys(), s.size, v.at(part.start, b, head / each), v.by_token, values.data());
                }
                for (int64_t at = 0; at < part.queries(); at += BLOCK) {
                    const int64_t rows = std::min(BLOCK, part.queries() - at), blocks = part.visible(at, rows);
                    gather_columns(rows, s.size, q.at(part.first + at, b, head), q.by_token, queries.data(), scale);
                    std::fill(largest, largest + BLOCK, std::numeric_limits<float>::lowest());
                    std::fill(total, total + BLOCK, 0.0f);
                    for (int64_t j = 0; j < blocks; ++j) {
                        float* block = &scores[j * AREA];
                        multiply(BLOCK, BLOCK, s.size, &keys[j * BLOCK * s.size], s.size, queries.data(), BLOCK, block, BLOCK, false);
                        const bool hides = part.hides(j, at);
                        for (int64_t r = 0; r < BLOCK; ++r)
                            for (int64_t i = hides ? seeing(j, r, at, part.offset()) : 0; i < BLOCK; ++i)
                                largest[i] = largest[i] < block[r * BLOCK + i] ? block[r * BLOCK + i] : largest[i];
                    }
                    for (int64_t j = 0; j < blocks; ++j) {
                        float* block = &scores[j * AREA];
                        for (int64_t r = 0; r < BLOCK; ++r)
                            for (int64_t i = 0; i < BLOCK; ++i) block[r * BLOCK + i] = std::exp(block[r * BLOCK + i] - largest[i]);
                        if (part.hides(j, at)) hide(block, j, at, part.offset());
                        for (int64_t r = 0; r < BLOCK; ++r)
                            for (int64_t i = 0; i < BLOCK; ++i) total[i] += block[r * BLOCK + i];
                        multiply(s.size, BLOCK, BLOCK, &values[j * BLOCK * s.size], BLOCK, block, BLOCK, sum.data(), BLOCK, j > 0);
                    }
                    for (int64_t e = 0; e < s.size; ++e)
                        for (int64_t i = 0; i < BLOCK; ++i) sum[e * BLOCK + i] /= total[i];
                    transpose(s.size, rows, sum.data(), BLOCK, out.at(part.first + at, b, head), out.by_token);
                    float* logarithms = sums + (b * s.heads + head) * tokens + part.first + at;
                    for (int64_t i = 0; i < rows; ++i) logarithms[i] = largest[i] + std::log(total[i]);
                }
            }
    }
}

// What attend_forward had and gave, and the gradient of `out`; d_q as q, d_k and d_v as k without strides and added to.
void attend_backward(const int64_t* sizes, const int64_t* of_stretches, float scale, const float* q_data, const int64_t* q_strides,
                     const float* k_data, const int64_t* k_strides, const float* v_data, const int64_t* v_strides, int64_t tokens,
                     const float* out_data, const float* sums, const float* grad_data, float* d_q_data, float* d_k_data, float* d_v_data) {
    Sizes s;
    std::copy(sizes, sizes + 5, &s.batch);
    const View q(q_data, q_strides), k(k_data, k_strides), v(v_data, v_strides);
    const View out(out_data, s.batch, s.heads, s.size), grad(grad_data, s.batch, s.heads, s.size), d_q(d_q_data, s.batch, s.heads, s.size),
        d_k(d_k_data, s.batch, s.groups, s.size), d_v(d_v_data, s.batch, s.groups, s.size);
    const int64_t each = s.heads / s.groups, cells = BLOCK * s.size;
    std::vector<float> keys, values, columns, d_keys, d_values, query_columns(cells), query_rows(cells), grad_columns(cells), grad_rows(cells),
        d_queries(cells), scores(AREA), d_scores(AREA);
    float sum[BLOCK], delta[BLOCK];
    for (int64_t n = 0; n < s.stretches; ++n) {
        Stretch part;
        std::copy(of_stretches + 4 * n, of_stretches + 4 * n + 4, &part.first);
        for (auto* kept : {&keys, &values, &columns, &d_keys, &d_values}) kept->resize(part.blocks() * cells);
        for (int64_t b = 0; b < s.batch; ++b)
            for (int64_t group = 0; group < s.groups; ++group) {
                gather(part.keys(), s.size, k.at(part.start, b, group), k.by_token, keys.data());
                gather(part.keys(), s.size, v.at(part.start, b, group), v.by_token, values.data());
                gather_columns(part.keys(), s.size, k.at(part.start, b, group), k.by_token, columns.data());
                for (auto* gradient : {&d_keys, &d_values}) std::fill(gradient->begin(), gradient->end(), 0.0f);
                for (int64_t head = group * each; head < (group + 1) * each; ++head)
                    for (int64_t at = 0; at < part.queries(); at += BLOCK) {
                        const int64_t rows = std::min(BLOCK, part.queries() - at), first = part.first + at;
                        const float *q_rows = q.at(first, b, head), *g_rows = grad.at(first, b, head), *o_rows = out.at(first, b, head);
                        gather_columns(rows, s.size, q_rows, q.by_token, query_columns.data(), scale);
                        gather(rows, s.size, q_rows, q.by_token, query_rows.data(), scale);
                        gather_columns(rows, s.size, g_rows, grad.by_token, grad_columns.data());
                        gather(rows, s.size, g_rows, grad.by_token, grad_rows.data());
                        for (int64_t i = 0; i < BLOCK; ++i) {
                            delta[i] = 0.0f;
                            sum[i] = i < rows ? sums[(b * s.heads + head) * tokens + first + i] : 0.0f;
                            for (int64_t e = 0; i < rows && e < s.size; ++e) delta[i] += g_rows[i * grad.by_token + e] * o_rows[i * out.by_token + e];
                        }
                        for (int64_t j = 0; j < part.visible(at, rows); ++j) {
                            multiply(BLOCK, BLOCK, s.size, &keys[j * cells], s.size, query_columns.data(), BLOCK, scores.data(), BLOCK, false);
                            multiply(BLOCK, BLOCK, s.size, &values[j * cells], s.size, grad_columns.data(), BLOCK, d_scores.data(), BLOCK, false);
                            for (int64_t r = 0; r < BLOCK; ++r)
                                for (int64_t i = 0; i < BLOCK; ++i) scores[r * BLOCK + i] = std::exp(scores[r * BLOCK + i] - sum[i]);
                            if (part.hides(j, at)) hide(scores.data(), j, at, part.offset());
                            for (int64_t r = 0; r < BLOCK; ++r)
                                for (int64_t i = 0; i < BLOCK; ++i)
                                    d_scores[r * BLOCK + i] = scores[r * BLOCK + i] * (d_scores[r * BLOCK + i] - delta[i]);
                            multiply(BLOCK, s.size, BLOCK, scores.data(), BLOCK, grad_rows.data(), s.size, &d_values[j * cells], s.size, true);
                            multiply(BLOCK, s.size, BLOCK, d_scores.data(), BLOCK, query_rows.data(), s.size, &d_keys[j * cells], s.size, true);
                            multiply(s.size, BLOCK, BLOCK, &columns[j * cells], BLOCK, d_scores.data(), BLOCK, d_queries.data(), BLOCK, j > 0);
                        }
                        transpose(s.size, rows, d_queries.data(), BLOCK, d_q.at(first, b, head), d_q.by_token, scale);
                    }
                for (int64_t i = 0; i < part.keys(); ++i)
                    for (int64_t e = 0; e < s.size; ++e) {
                        d_k.at(part.start + i, b, group)[e] += d_keys[i * s.size + e];
                        d_v.at(part.start + i, b, group)[e] += d_values[i * s.size + e];
                    }
            }
    }
}
}
