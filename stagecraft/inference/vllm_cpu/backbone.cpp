// The layers of Nemotron-H on the tokens of sequences that decode, in one call; backbone.py, whose structures these are, calls it. All values
// are float32, matrices [rows, columns] as the checkpoint has them. What a token gets in a layer of products does not depend on how many
// others there are but for the order of sums.
#include "loops.hpp"

#include <cmath>
#include <vector>

namespace {

// BLAS: c <- alpha op(a) op(b) + beta c, column by column.
using Gemm = void (*)(const char*, const char*, const int32_t*, const int32_t*, const int32_t*, const float*, const float*, const int32_t*,
                      const float*, const int32_t*, const float*, float*, const int32_t*);

constexpr int64_t FEW = 4;  // tokens; from there on BLAS's product is the faster one

struct Matrix {
    const float* weight;
    int64_t rows, columns, format;  // the latter of what it multiplies, with its scale
    float scale;
};

struct Mlp {
    Matrix up, down;
};

struct Moe {
    Matrix gate, into, out_of;  // to and from the latent width; null weights where the experts take the hidden width
    Mlp shared;
    const float *bias, *up, *down, *input_scales, *hidden_scales;
    int64_t experts, chosen, width, inner, renormalize, format;
    float scale;
};

struct Mamba {
    Matrix in, out;
    const Sequences* sequences;
    float *conv_states, *states;
    const float *weight, *bias, *A, *D, *dt_bias, *norm;
    int64_t heads, size, groups, n, kernel, normed, by_slot, by_channel, by_time, state_by_slot;
    float epsilon;
};

// Of a cache group: token t of all is written to position places[t] of the cache; sequence b ends with its tokens at ends[b] positions,
// which lie in the blocks table[b * per_row ...].
struct Cached {
    int64_t count, per_row;
    const int32_t *starts, *ends, *table;
    const int64_t* places;
};

struct Attention {
    Matrix qkv, out;
    const Cached* cached;
    float* cache;  // [blocks, key heads, 2, block * size]: keys [size, block], values [block, size]
    int64_t heads, key_heads, size, block, by_block;
    float scale, key_scale, value_scale;  // the latter of what is kept rounded to FP8; 0 where nothing is
};

struct Layer {
    const float* norm;
    float epsilon;
    const Mamba* mamba;
    const Attention* attention;
    const Moe* moe;
    const Mlp* mlp;
};

struct Scratch {
    std::vector<float> normed, first, second, third, rounded;
    static float* of(std::vector<float>& values, int64_t count) {
        if (static_cast<int64_t>(values.size()) < count) values.resize(count);
        return values.data();
    }
};

// y [tokens, rows] <- x [tokens, columns] times the matrix's transpose, plus beta times y.
void multiply(Gemm gemm, const Matrix& matrix, const float* x, int64_t tokens, Scratch& scratch, float* y, float beta = 0.0f) {
    if (matrix.format != UNROUNDED) {
        float* rounded = Scratch::of(scratch.rounded, tokens * matrix.columns);
        round_to(matrix.format, matrix.scale, x, tokens * matrix.columns, rounded);
        x = rounded;
    }
    if (tokens < FEW) {
        const float* vectors[FEW];
        for (int64_t t = 0; t < tokens; ++t) vectors[t] = x + t * matrix.columns;
        products(matrix.weight, matrix.rows, matrix.columns, vectors, tokens, [&](int64_t t, int64_t row, float sum) {
            float& value = y[t * matrix.rows + row];
            value = sum + (beta == 0.0f ? 0.0f : beta * value);
        });
        return;
    }
    const auto m = static_cast<int32_t>(matrix.rows), n = static_cast<int32_t>(tokens), k = static_cast<int32_t>(matrix.columns);
    const float one = 1.0f;
    gemm("T", "N", &m, &n, &k, &one, matrix.weight, &k, x, &k, &beta, y, &m);
}

void square_relu(float* values, int64_t count) {
    for (int64_t i = 0; i < count; ++i) {
        const float positive = std::max(values[i], 0.0f);
        values[i] = positive * positive;
    }
}

// y <- down relu(up x)^2
void mlp(Gemm gemm, const Mlp& layer, const float* x, int64_t tokens, Scratch& scratch, float* y, float beta = 0.0f) {
    float* hidden = Scratch::of(scratch.first, tokens * layer.up.rows);
    multiply(gemm, layer.up, x, tokens, scratch, hidden);
    square_relu(hidden, tokens * layer.up.rows);
    multiply(gemm, layer.down, hidden, tokens, scratch, y, beta);
}

void moe(Gemm gemm, const Moe& layer, const float* x, int64_t tokens, Scratch& scratch, float* y) {
    float* logits = Scratch::of(scratch.first, tokens * layer.experts);
    multiply(gemm, layer.gate, x, tokens, scratch, logits);
    const int64_t sizes[] = {tokens, layer.experts, layer.chosen, layer.width, layer.inner, layer.renormalize, layer.format};
    const auto route = [&](const float* from, float* to) {
        experts(sizes, layer.scale, logits, layer.bias, from, layer.up, layer.down, layer.input_scales, layer.hidden_scales, to);
    };
    if (layer.into.weight) {
        float *latent = Scratch::of(scratch.second, tokens * layer.width), *routed = Scratch::of(scratch.third, tokens * layer.width);
        multiply(gemm, layer.into, x, tokens, scratch, latent);
        route(latent, routed);
        multiply(gemm, layer.out_of, routed, tokens, scratch, y);
    } else {
        route(x, y);
    }
    mlp(gemm, layer.shared, x, tokens, scratch, y, 1.0f);
}

void mamba(Gemm gemm, const Mamba& layer, const float* x, int64_t tokens, Scratch& scratch, float* y) {
    float *projected = Scratch::of(scratch.first, tokens * layer.in.rows), *mixed = Scratch::of(scratch.second, tokens * layer.out.columns);
    multiply(gemm, layer.in, x, tokens, scratch, projected);
    const Sequences& all = *layer.sequences;
    const int64_t sizes[] = {all.count, all.per_row, tokens, layer.heads, layer.size, layer.groups, layer.n, layer.kernel, layer.normed,
                             layer.in.rows, layer.by_slot, layer.by_channel, layer.by_time, layer.state_by_slot};
    mixer(sizes, layer.epsilon, projected, layer.conv_states, layer.weight, layer.bias, layer.states, layer.A, layer.D, layer.dt_bias,
          layer.norm, all.slots, all.starts, all.accepted, mixed);
    multiply(gemm, layer.out, mixed, tokens, scratch, y);
}

constexpr int64_t LANES = 32;  // sums side by side, in registers; what vLLM's cache is a multiple of, block and head

// y [size] <- the values of `count` positions, weighed by softmax(scale q . keys).
void attend(const Attention& layer, const float* q, int64_t key_head, const int32_t* blocks, int64_t count, float* scores, float* y) {
    const int64_t size = layer.size, block = layer.block, half = block * size;
    float largest = -INFINITY, sum = 0.0f;
    for (int64_t first = 0; first < count; first += LANES) {
        const float* keys = layer.cache + blocks[first / block] * layer.by_block + key_head * 2 * half + first % block;
        float lanes[LANES] = {};
        for (int64_t i = 0; i < size; ++i)
            for (int64_t j = 0; j < LANES; ++j) lanes[j] += q[i] * keys[i * block + j];
        for (int64_t j = 0; j < std::min(LANES, count - first); ++j) {
            scores[first + j] = layer.scale * lanes[j];
            largest = std::max(largest, scores[first + j]);
        }
    }
    for (int64_t j = 0; j < count; ++j) scores[j] = std::exp(scores[j] - largest);
    for (int64_t j = 0; j < count; ++j) sum += scores[j];
    for (int64_t at = 0; at < size; at += LANES) {
        float lanes[LANES] = {};
        for (int64_t first = 0; first < count; first += block) {
            const float* values = layer.cache + blocks[first / block] * layer.by_block + (key_head * 2 + 1) * half + at;
            for (int64_t j = 0; j < std::min(block, count - first); ++j)
                for (int64_t i = 0; i < LANES; ++i) lanes[i] += scores[first + j] * values[j * size + i];
        }
        for (int64_t i = 0; i < LANES; ++i) y[at + i] = lanes[i] / sum;
    }
}

void attention(Gemm gemm, const Attention& layer, const float* x, int64_t tokens, Scratch& scratch, float* y) {
    const Cached& all = *layer.cached;
    const int64_t size = layer.size, block = layer.block, row = layer.qkv.rows, keys = layer.heads * size;
    float *qkv = Scratch::of(scratch.first, tokens * row), *mixed = Scratch::of(scratch.second, tokens * keys);
    multiply(gemm, layer.qkv, x, tokens, scratch, qkv);
    for (int64_t t = 0; t < tokens; ++t) {
        if (layer.key_scale > 0.0f) {
            float *key = qkv + t * row + keys, *value = key + layer.key_heads * size;
            round_to(FP8, layer.key_scale, key, layer.key_heads * size, key);
            round_to(FP8, layer.value_scale, value, layer.key_heads * size, value);
        }
        const int64_t place = all.places[t], offset = place % block;
        float* to = layer.cache + place / block * layer.by_block;
        const float *key = qkv + t * row + keys, *value = key + layer.key_heads * size;
        for (int64_t h = 0; h < layer.key_heads; ++h, to += 2 * block * size, key += size, value += size) {
            for (int64_t i = 0; i < size; ++i) to[i * block + offset] = key[i];
            std::copy(value, value + size, to + (block + offset) * size);
        }
    }
    for (int64_t b = 0; b < all.count; ++b) {
        const int64_t last = all.starts[b + 1];
        float* scores = Scratch::of(scratch.third, all.ends[b]);
        for (int64_t t = all.starts[b]; t < last; ++t)  // a token sees its own position and all before
            for (int64_t h = 0; h < layer.heads; ++h)
                attend(layer, qkv + t * row + h * size, h / (layer.heads / layer.key_heads), all.table + b * all.per_row,
                       all.ends[b] - (last - 1 - t), scores, mixed + t * keys + h * size);
    }
    multiply(gemm, layer.out, mixed, tokens, scratch, y);
}

}  // namespace

// residual [tokens, hidden] <- what enters the last layer's norm, y [tokens, hidden] <- what that layer adds to it. On entry y is to be added.
extern "C" void backbone(Gemm gemm, const Layer* layers, int64_t count, int64_t tokens, int64_t hidden, float* residual, float* y) {
    Scratch scratch;
    float* normed = Scratch::of(scratch.normed, tokens * hidden);
    for (const Layer* layer = layers; layer != layers + count; ++layer) {
        for (int64_t t = 0; t < tokens; ++t) {
            float *sum = residual + t * hidden, *to = normed + t * hidden, square = 0.0f;
            const float* added = y + t * hidden;
            for (int64_t i = 0; i < hidden; ++i) {
                sum[i] += added[i];
                square += sum[i] * sum[i];
            }
            const float factor = 1.0f / std::sqrt(square / hidden + layer->epsilon);
            for (int64_t i = 0; i < hidden; ++i) to[i] = sum[i] * factor * layer->norm[i];
        }
        if (layer->mamba) mamba(gemm, *layer->mamba, normed, tokens, scratch, y);
        if (layer->attention) attention(gemm, *layer->attention, normed, tokens, scratch, y);
        if (layer->moe) moe(gemm, *layer->moe, normed, tokens, scratch, y);
        if (layer->mlp) mlp(gemm, *layer->mlp, normed, tokens, scratch, y);
    }
}
