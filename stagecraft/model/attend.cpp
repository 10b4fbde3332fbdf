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

// The products of a block of keys, row by row, and a block of queries: [BLOCK, BLOCK], of block `j` of keys and the queries from `at` on.
struct Block {
    float* cells;
    int64_t j, at;
    const Stretch& part;

    bool hides() const { return part.hides(j, at); }
    // The first of the queries that sees key `r`.
    int64_t seeing(int64_t r) const { return std::clamp<int64_t>(j * BLOCK + r - at - part.offset(), 0, BLOCK); }

    void raise_maxima(float* largest) const {
        const bool some = hides();
        for (int64_t r = 0; r < BLOCK; ++r)
            for (int64_t i = some ? seeing(r) : 0; i < BLOCK; ++i) {
                const float score = cells[r * BLOCK + i];
                largest[i] = largest[i] < score ? score : largest[i];
            }
    }
    // Scores become weights: e^(score - of the query's), zero where the query does not see the key.
    void weigh(const float* subtracted) const {
        for (int64_t r = 0; r < BLOCK; ++r)
            for (int64_t i = 0; i < BLOCK; ++i) cells[r * BLOCK + i] = std::exp(cells[r * BLOCK + i] - subtracted[i]);
        for (int64_t r = 0; hides() && r < BLOCK; ++r) std::fill(cells + r * BLOCK, cells + r * BLOCK + seeing(r), 0.0f);
    }
    void add_to(float* total) const {
        for (int64_t r = 0; r < BLOCK; ++r)
            for (int64_t i = 0; i < BLOCK; ++i) total[i] += cells[r * BLOCK + i];
    }
};

std::vector<Stretch> stretches(const Sizes& s, const int64_t* bounds) {
    std::vector<Stretch> all(s.stretches);
    for (auto& part : all) {
        part = {bounds[0], bounds[1], bounds[2], bounds[3]};
        bounds += 4;
    }
    return all;
}

}  // namespace

extern "C" {

// q [t, batch, heads, size], k and v [T, batch, groups, size] with strides; out [t, batch, heads, size], sums [batch, heads, t].
void attend_forward(const int64_t* sizes, const int64_t* bounds, float scale, const float* q_data, const int64_t* q_strides,
                    const float* k_data, const int64_t* k_strides, const float* v_data, const int64_t* v_strides, int64_t tokens,
                    float* out_data, float* sums) {
    const Sizes s{sizes[0], sizes[1], sizes[2], sizes[3], sizes[4]};
    const View q(q_data, q_strides), k(k_data, k_strides), v(v_data, v_strides), out(out_data, s.batch, s.heads, s.size);
    const int64_t each = s.heads / s.groups, cells = BLOCK * s.size;
    std::vector<float> keys, values, scores, queries(cells), sum(cells);
    float largest[BLOCK], total[BLOCK];
    const auto answer = [&](const Stretch& part, int64_t b, int64_t head, int64_t at) {
        const int64_t first = part.first + at, rows = std::min(BLOCK, part.queries() - at), blocks = part.visible(at, rows);
        gather_columns(rows, s.size, q.at(first, b, head), q.by_token, queries.data(), scale);
        std::fill(largest, largest + BLOCK, std::numeric_limits<float>::lowest());
        std::fill(total, total + BLOCK, 0.0f);
        for (int64_t j = 0; j < blocks; ++j) {
            const Block block{&scores[j * AREA], j, at, part};
            multiply(BLOCK, BLOCK, s.size, &keys[j * cells], s.size, queries.data(), BLOCK, block.cells, BLOCK, false);
            block.raise_maxima(largest);
        }
        for (int64_t j = 0; j < blocks; ++j) {
            const Block block{&scores[j * AREA], j, at, part};
            block.weigh(largest);
            block.add_to(total);
            multiply(s.size, BLOCK, BLOCK, &values[j * cells], BLOCK, block.cells, BLOCK, sum.data(), BLOCK, j > 0);
        }
        for (int64_t e = 0; e < s.size; ++e)
            for (int64_t i = 0; i < BLOCK; ++i) sum[e * BLOCK + i] /= total[i];
        transpose(s.size, rows, sum.data(), BLOCK, out.at(first, b, head), out.by_token);
        for (int64_t i = 0; i < rows; ++i) sums[(b * s.heads + head) * tokens + first + i] = largest[i] + std::log(total[i]);
    };
    for (const Stretch& part : stretches(s, bounds)) {
        for (auto* kept : {&keys, &values}) kept->resize(part.blocks() * cells);
        scores.resize(part.blocks() * AREA);
        for (int64_t b = 0; b < s.batch; ++b)
            for (int64_t head = 0; head < s.heads; ++head) {
                if (head % each == 0) {
                    gather(part.keys(), s.size, k.at(part.start, b, head / each), k.by_token, keys.data());
                    gather_columns(part.keys(), s.size, v.at(part.start, b, head / each), v.by_token, values.data());
                }
                for (int64_t at = 0; at < part.queries(); at += BLOCK) answer(part, b, head, at);
            }
    }
}

// What attend_forward had and gave, and the gradient of `out`; d_q as q, d_k and d_v as k without strides and added to.
void attend_backward(const int64_t* sizes, const int64_t* bounds, float scale, const float* q_data, const int64_t* q_strides,
                     const float* k_data, const int64_t* k_strides, const float* v_data, const int64_t* v_strides, int64_t tokens,
                     const float* out_data, const float* sums, const float* grad_data, float* d_q_data, float* d_k_data, float* d_v_data) {
    const Sizes s{sizes[0], sizes[1], sizes[2], sizes[3], sizes[4]};
    const View q(q_data, q_strides), k(k_data, k_strides), v(v_data, v_strides);
    const View out(out_data, s.batch, s.heads, s.size), grad(grad_data, s.batch, s.heads, s.size), d_q(d_q_data, s.batch, s.heads, s.size),
        d_k(d_k_data, s.batch, s.groups, s.size), d_v(d_v_data, s.batch, s.groups, s.size);
    const int64_t each = s.heads / s.groups, cells = BLOCK * s.size;
    std::vector<float> keys, values, key_columns, d_keys, d_values, query_columns(cells), query_rows(cells), grad_columns(cells),
        grad_rows(cells), d_queries(cells), scores(AREA), d_scores(AREA);
    float sum[BLOCK], delta[BLOCK];
    const auto learn = [&](const Stretch& part, int64_t b, int64_t head, int64_t at) {
        const int64_t first = part.first + at, rows = std::min(BLOCK, part.queries() - at);
        gather_columns(rows, s.size, q.at(first, b, head), q.by_token, query_columns.data(), scale);
        gather(rows, s.size, q.at(first, b, head), q.by_token, query_rows.data(), scale);
        gather_columns(rows, s.size, grad.at(first, b, head), grad.by_token, grad_columns.data());
        gather(rows, s.size, grad.at(first, b, head), grad.by_token, grad_rows.data());
        std::fill(sum, sum + BLOCK, 0.0f);
        std::fill(delta, delta + BLOCK, 0.0f);
        for (int64_t i = 0; i < rows; ++i) {
            const float* row = out.at(first + i, b, head);
            sum[i] = sums[(b * s.heads + head) * tokens + first + i];
            for (int64_t e = 0; e < s.size; ++e) delta[i] += grad_rows[i * s.size + e] * row[e];
        }
        for (int64_t j = 0; j < part.visible(at, rows); ++j) {
            const Block block{scores.data(), j, at, part};
            multiply(BLOCK, BLOCK, s.size, &keys[j * cells], s.size, query_columns.data(), BLOCK, block.cells, BLOCK, false);
            multiply(BLOCK, BLOCK, s.size, &values[j * cells], s.size, grad_columns.data(), BLOCK, d_scores.data(), BLOCK, false);
            block.weigh(sum);
            for (int64_t r = 0; r < BLOCK; ++r)
                for (int64_t i = 0; i < BLOCK; ++i)
                    d_scores[r * BLOCK + i] = block.cells[r * BLOCK + i] * (d_scores[r * BLOCK + i] - delta[i]);
            multiply(BLOCK, s.size, BLOCK, block.cells, BLOCK, grad_rows.data(), s.size, &d_values[j * cells], s.size, true);
            multiply(BLOCK, s.size, BLOCK, d_scores.data(), BLOCK, query_rows.data(), s.size, &d_keys[j * cells], s.size, true);
            multiply(s.size, BLOCK, BLOCK, &key_columns[j * cells], BLOCK, d_scores.data(), BLOCK, d_queries.data(), BLOCK, j > 0);
        }
        transpose(s.size, rows, d_queries.data(), BLOCK, d_q.at(first, b, head), d_q.by_token, scale);
    };
    for (const Stretch& part : stretches(s, bounds)) {
        for (auto* kept : {&keys, &values, &key_columns}) kept->resize(part.blocks() * cells);
        for (int64_t b = 0; b < s.batch; ++b)
            for (int64_t group = 0; group < s.groups; ++group) {
                gather(part.keys(), s.size, k.at(part.start, b, group), k.by_token, keys.data());
                gather(part.keys(), s.size, v.at(part.start, b, group), v.by_token, values.data());
                gather_columns(part.keys(), s.size, k.at(part.start, b, group), k.by_token, key_columns.data());
                for (auto* gradient : {&d_keys, &d_values}) gradient->assign(part.blocks() * cells, 0.0f);
                for (int64_t head = group * each; head < (group + 1) * each; ++head)
                    for (int64_t at = 0; at < part.queries(); at += BLOCK) learn(part, b, head, at);
                for (int64_t i = 0; i < part.keys(); ++i)
                    for (int64_t e = 0; e < s.size; ++e) {
                        d_k.at(part.start + i, b, group)[e] += d_keys[i * s.size + e];
                        d_v.at(part.start + i, b, group)[e] += d_values[i * s.size + e];
                    }
            }
    }
}
}
