// The routed experts of a batch of tokens in one call: choice, products, weighted sum; stagecraft/inference/vllm_cpu/latent_moe.py calls it.
//
// y_t = scale * sum over the chosen e of share_e * down_e relu(up_e x_t)^2. Tokens that chose the same expert pass it together, so that its
// weights are read once. Where the checkpoint is quantised, what goes into a product is rounded, in units of the expert's scale.
#include "loops.hpp"

#include <cmath>
#include <numeric>
#include <vector>

namespace {

struct Choice {
    int64_t token, expert;
    float share;
};

// The `chosen` experts of the highest sigmoid plus bias, each with its sigmoid as share.
void choose(const float* logits, const float* bias, int64_t experts, int64_t chosen, bool renormalize, int64_t token, Choice* choices) {
    std::vector<float> score(experts);
    std::vector<int64_t> order(experts);
    for (int64_t e = 0; e < experts; ++e) score[e] = 1.0f / (1.0f + std::exp(-logits[e]));
    std::iota(order.begin(), order.end(), 0);
    std::partial_sort(order.begin(), order.begin() + chosen, order.end(),
                      [&](int64_t a, int64_t b) { return score[a] + bias[a] > score[b] + bias[b]; });
    float sum = 0.0f;
    for (int64_t k = 0; k < chosen; ++k) sum += score[order[k]];
    for (int64_t k = 0; k < chosen; ++k) choices[k] = {token, order[k], score[order[k]] / (renormalize ? sum : 1.0f)};
}

}  // namespace

// sizes: tokens, experts, chosen, latent d, inner f, renormalize, format of inputs. logits [tokens, experts], bias [experts], x and y
// [tokens, d], up [experts, f, d], down [experts, d, f]; the scales [experts] of what is rounded, null where nothing is.
extern "C" void experts(const int64_t* sizes, float scale, const float* logits, const float* bias, const float* x, const float* up,
                        const float* down, const float* input_scales, const float* hidden_scales, float* y) {
    const int64_t tokens = sizes[0], experts = sizes[1], chosen = sizes[2], d = sizes[3], f = sizes[4], format = sizes[6];
    std::vector<Choice> choices(tokens * chosen);
    for (int64_t t = 0; t < tokens; ++t)
        choose(logits + t * experts, bias, experts, chosen, sizes[5] != 0, t, choices.data() + t * chosen);
    std::stable_sort(choices.begin(), choices.end(), [](const Choice& a, const Choice& b) { return a.expert < b.expert; });
    std::fill(y, y + tokens * d, 0.0f);
    std::vector<float> hidden(tokens * f), inputs(format == UNROUNDED ? 0 : tokens * d);
    std::vector<const float*> vectors(tokens);
    for (auto first = choices.begin(); first != choices.end();) {
        const int64_t expert = first->expert;
        const auto last = std::find_if(first, choices.end(), [=](const Choice& choice) { return choice.expert != expert; });
        const int64_t count = last - first;
        for (int64_t v = 0; v < count; ++v) {
            vectors[v] = x + first[v].token * d;
            if (format == UNROUNDED) continue;
            round_to(format, input_scales[expert], vectors[v], d, inputs.data() + v * d);
            vectors[v] = inputs.data() + v * d;
        }
        products(up + expert * f * d, f, d, vectors.data(), count, [&](int64_t v, int64_t row, float sum) {
            const float positive = std::max(sum, 0.0f);
            hidden[v * f + row] = positive * positive;
        });
        if (format != UNROUNDED) round_to(format, hidden_scales[expert], hidden.data(), count * f, hidden.data());
        for (int64_t v = 0; v < count; ++v) vectors[v] = hidden.data() + v * f;
        products(down + expert * d * f, d, f, vectors.data(), count,
                 [&](int64_t v, int64_t row, float sum) { y[first[v].token * d + row] += scale * first[v].share * sum; });
        first = last;
    }
}
