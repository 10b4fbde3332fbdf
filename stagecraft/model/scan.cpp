// Mamba-2's convolution, selective scan and gate in one pass over memory, and their gradients, for CPUs; stagecraft/model/scan.py calls it.
//
// The recurrence as it is defined (Dao and Gu 2024, arXiv 2405.21060, section 2): the state of a head fits into registers and the
// first cache, so that on a CPU it is faster than the products of chunks. Row t of `in` is gate z [h p], then x [h p], B [g n], C [g n],
// which pass the convolution, then the raw time step [h]. Where `seq` changes, convolution and state begin anew.
// Tokens are the first dimension in memory, as everywhere in megatron-core: [l, b, row]. What is kept is [b, l, ...].
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <type_traits>
#include <vector>

namespace {

struct Sizes {
    int64_t batch, length, heads, size, groups, state, width, chunk;
    int64_t inner() const { return heads * size; }
    int64_t channels() const { return inner() + 2 * groups * state; }
    int64_t row() const { return inner() + channels() + heads; }
};

float sigmoid(float v) { return 1.0f / (1.0f + std::exp(-v)); }

bool begins(const int64_t* seq, int64_t t) { return t == 0 || (seq && seq[t] != seq[t - 1]); }

// One head over one row of tokens. P is the head size if the compiler is to know it, else 0: with it the inner loops are a few
// vector instructions.
template <int P>
struct Head {
    const Sizes& s;
    const int64_t* seq;
    const float *u, *dt;  // [l, channels] after the silu, [l, h] after softplus
    int64_t head, at_x, at_B, at_C;
    float A, D;

    Head(const Sizes& s, const int64_t* seq, const float* u, const float* dt, int64_t head, const float* A, const float* D)
        : s(s), seq(seq), u(u), dt(dt), head(head), at_x(head * s.size),
          at_B(s.inner() + head / (s.heads / s.groups) * s.state), at_C(at_B + s.groups * s.state), A(A[head]), D(D[head]) {}

    int64_t size() const { return P ? P : s.size; }
    const float* x(int64_t t) const { return u + t * s.channels() + at_x; }
    const float* B(int64_t t) const { return u + t * s.channels() + at_B; }
    const float* C(int64_t t) const { return u + t * s.channels() + at_C; }
    float step(int64_t t) const { return dt[t * s.heads + head]; }
    float decay(int64_t t) const { return begins(seq, t) ? 0.0f : std::exp(step(t) * A); }

    // after <- decay before + B (dt x), both [n][p]; they may be the same.
    void advance(int64_t t, const float* before, float* after) const {
        const int64_t p = size();
        const float keep = decay(t), dt = step(t), *Bt = B(t), *xt = x(t);
        for (int64_t i = 0; i < s.state; ++i) {
            const float b = Bt[i] * dt;
#pragma GCC ivdep
            for (int64_t j = 0; j < p; ++j) after[i * p + j] = before[i * p + j] * keep + b * xt[j];
        }
    }

    void forward(float* y) const {
        const int64_t p = size();
        std::vector<float> h(s.state * p);
        for (int64_t t = 0; t < s.length; ++t) {
            advance(t, h.data(), h.data());
            const float *Ct = C(t), *xt = x(t), *from = h.data();
            float* __restrict to = y + t * s.inner() + at_x;
            for (int64_t j = 0; j < p; ++j) to[j] = D * xt[j];
            for (int64_t i = 0; i < s.state; ++i)
                for (int64_t j = 0; j < p; ++j) to[j] += Ct[i] * from[i * p + j];
        }
    }

    // dy [l, h p] -> du [l, channels] (added to), d_dt [l, h], d_A and d_D of this head (added to).
    void backward(const float* dy, float* du, float* d_dt, float* d_A, float* d_D) const {
        const int64_t p = size(), cells = s.state * p, chunks = (s.length + s.chunk - 1) / s.chunk;
        std::vector<float> starts(chunks * cells), kept((s.chunk + 1) * cells), G(cells), d_xs(p);
        for (int64_t t = 0; t < s.length; ++t) {  // G is the running state here
            if (t % s.chunk == 0) std::copy(G.begin(), G.end(), &starts[t / s.chunk * cells]);
            advance(t, G.data(), G.data());
        }
        std::fill(G.begin(), G.end(), 0.0f);  // and the gradient of the state from here on
        for (int64_t c = chunks - 1; c >= 0; --c) {
            const int64_t first = c * s.chunk, end = std::min(s.length, first + s.chunk);
            std::copy(&starts[c * cells], &starts[c * cells] + cells, kept.begin());
            for (int64_t t = first; t < end; ++t) advance(t, &kept[(t - first) * cells], &kept[(t - first + 1) * cells]);
            for (int64_t t = end - 1; t >= first; --t) {
                const float *before = &kept[(t - first) * cells], *now = before + cells, *g = dy + t * s.inner() + at_x;
                const float *xt = x(t), *Bt = B(t), *Ct = C(t), dt = step(t), keep = decay(t);
                float *dx = du + t * s.channels() + at_x, *dB = du + t * s.channels() + at_B, *dC = du + t * s.channels() + at_C;
                float* __restrict acc = d_xs.data();
                float d_decay = 0.0f, d_step = 0.0f, d_skip = 0.0f;
                std::fill(d_xs.begin(), d_xs.end(), 0.0f);
                for (int64_t i = 0; i < s.state; ++i) {
                    float* __restrict Gi = &G[i * p];
                    const float *before_i = before + i * p, *now_i = now + i * p, b = Bt[i], c_i = Ct[i];
                    float sum_B = 0.0f, sum_C = 0.0f;
                    for (int64_t j = 0; j < p; ++j) {
                        const float v = Gi[j] + c_i * g[j];
                        sum_C += now_i[j] * g[j];
                        sum_B += v * xt[j];
                        d_decay += v * before_i[j];
                        acc[j] += v * b;
                        Gi[j] = v * keep;
                    }
                    dB[i] += sum_B * dt;
                    dC[i] += sum_C;
                }
                for (int64_t j = 0; j < p; ++j) {
                    d_step += acc[j] * xt[j];
                    d_skip += g[j] * xt[j];
                }
#pragma GCC ivdep
                for (int64_t j = 0; j < p; ++j) dx[j] += acc[j] * dt + D * g[j];
                *d_D += d_skip;
                *d_A += d_decay * keep * dt;
                d_dt[t * s.heads + head] = d_step + d_decay * keep * A;
            }
        }
    }
};

template <typename F>
void with_size(int64_t size, F run) {
    if (size == 32) run(std::integral_constant<int, 32>());
    else if (size == 64) run(std::integral_constant<int, 64>());
    else run(std::integral_constant<int, 0>());
}

void activate(const Sizes& s, const float* pre, float* __restrict u) {
    for (int64_t i = 0; i < s.length * s.channels(); ++i) u[i] = pre[i] * sigmoid(pre[i]);
}

}  // namespace

extern "C" {

// `pre` [b, l, channels] (the convolution before its silu), `dt` [b, l, h] after softplus and `y` [b, l, h p] before the gate are kept
// for the gradients; `out` [l, b, h p].
void scan_forward(const int64_t* sizes, const float* in, const float* conv, const float* conv_bias, const float* dt_bias, const float* A,
                  const float* D, const int64_t* seqs, float* pre_all, float* dt_all, float* y_all, float* out_all) {
    Sizes s;
    std::copy(sizes, sizes + 8, &s.batch);
    const int64_t inner = s.inner(), channels = s.channels(), row = s.row(), next = s.batch * row, next_out = s.batch * inner;
    std::vector<float> u(s.length * channels);
    for (int64_t b = 0; b < s.batch; ++b) {
        const float* x_in = in + b * row;
        const int64_t* seq = seqs ? seqs + b * s.length : nullptr;
        float *pre = pre_all + b * s.length * channels, *dt = dt_all + b * s.length * s.heads, *y = y_all + b * s.length * inner,
              *out = out_all + b * inner;
        for (int64_t t = 0; t < s.length; ++t) {
            float* to = pre + t * channels;
            std::copy(conv_bias, conv_bias + channels, to);
            for (int64_t back = 0; back < s.width && back <= t; ++back) {
                if (back && begins(seq, t - back + 1)) break;
                const float *from = x_in + (t - back) * next + inner, *weight = conv + (s.width - 1 - back) * channels;
                for (int64_t i = 0; i < channels; ++i) to[i] += weight[i] * from[i];
            }
            const float* raw = x_in + t * next + inner + channels;
            for (int64_t i = 0; i < s.heads; ++i) {
                const float v = raw[i] + dt_bias[i];
                dt[t * s.heads + i] = v > 20.0f ? v : std::log1p(std::exp(v));
            }
        }
        activate(s, pre, u.data());
        with_size(s.size, [&](auto p) {
            for (int64_t head = 0; head < s.heads; ++head) Head<p()>(s, seq, u.data(), dt, head, A, D).forward(y);
        });
        for (int64_t t = 0; t < s.length; ++t)
            for (int64_t i = 0; i < inner; ++i) out[t * next_out + i] = y[t * inner + i] * x_in[t * next + i] * sigmoid(x_in[t * next + i]);
    }
}

// Gradients of all arguments, those of the weights added to what is there; `chunk` states are kept at a time and computed again.
void scan_backward(const int64_t* sizes, const float* in, const float* conv, const float* dt_bias, const float* A, const float* D,
                   const int64_t* seqs, const float* pre_all, const float* dt_all, const float* y_all, const float* grad_all,
                   float* d_in_all, float* d_conv, float* d_conv_bias, float* d_dt_bias, float* d_A, float* d_D) {
    Sizes s;
    std::copy(sizes, sizes + 8, &s.batch);
    const int64_t inner = s.inner(), channels = s.channels(), row = s.row(), next = s.batch * row, next_out = s.batch * inner;
    std::vector<float> u(s.length * channels), du(s.length * channels), dy(s.length * inner), d_dt(s.length * s.heads);
    for (int64_t b = 0; b < s.batch; ++b) {
        const float *x_in = in + b * row, *pre = pre_all + b * s.length * channels, *dt = dt_all + b * s.length * s.heads,
                    *y = y_all + b * s.length * inner, *grad = grad_all + b * inner;
        const int64_t* seq = seqs ? seqs + b * s.length : nullptr;
        float* d_in = d_in_all + b * row;
        activate(s, pre, u.data());
        std::fill(du.begin(), du.end(), 0.0f);
        for (int64_t t = 0; t < s.length; ++t)
            for (int64_t i = 0; i < inner; ++i) {
                const float z = x_in[t * next + i], gate = sigmoid(z), g = grad[t * next_out + i];
                dy[t * inner + i] = g * z * gate;
                d_in[t * next + i] = g * y[t * inner + i] * gate * (1.0f + z * (1.0f - gate));
            }
        with_size(s.size, [&](auto p) {
            for (int64_t head = 0; head < s.heads; ++head)
                Head<p()>(s, seq, u.data(), dt, head, A, D).backward(dy.data(), du.data(), d_dt.data(), d_A + head, d_D + head);
        });
        for (int64_t i = 0; i < s.length * channels; ++i) {
            const float gate = sigmoid(pre[i]);
            du[i] *= gate * (1.0f + pre[i] * (1.0f - gate));
        }
        for (int64_t t = 0; t < s.length; ++t) {
            float* to = d_in + t * next + inner;
            std::fill(to, to + channels, 0.0f);
            for (int64_t ahead = 0; ahead < s.width && t + ahead < s.length; ++ahead) {
                if (ahead && begins(seq, t + ahead)) break;
                const float *g = &du[(t + ahead) * channels], *from = x_in + t * next + inner, *weight = conv + (s.width - 1 - ahead) * channels;
                float* dw = d_conv + (s.width - 1 - ahead) * channels;
                for (int64_t i = 0; i < channels; ++i) {
                    to[i] += weight[i] * g[i];
                    dw[i] += from[i] * g[i];
                }
            }
            for (int64_t i = 0; i < channels; ++i) d_conv_bias[i] += du[t * channels + i];
            for (int64_t i = 0; i < s.heads; ++i) {
                const float g = d_dt[t * s.heads + i] * sigmoid(x_in[t * next + inner + channels + i] + dt_bias[i]);
                d_in[t * next + inner + channels + i] = g;
                d_dt_bias[i] += g;
            }
        }
    }
}
}
