// PyTorch's products of float32 matrices on CPUs, by oneDNN in place of MKL; stagecraft/onednn/__init__.py says where that is worth it.
#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>
#include <torch/library.h>

// Not in PyTorch's installed headers.
namespace at::native {
void mkldnn_matmul(const Tensor& a, const Tensor& b, const Tensor& to, float beta, float alpha);
}
namespace at::cpu {
Tensor mm(const Tensor& a, const Tensor& b);
Tensor& mm_out(Tensor& to, const Tensor& a, const Tensor& b);
Tensor& addmm_(Tensor& to, const Tensor& a, const Tensor& b, const Scalar& beta, const Scalar& alpha);
Tensor bmm(const Tensor& a, const Tensor& b);
Tensor& bmm_out(Tensor& to, const Tensor& a, const Tensor& b);
}

namespace {

using at::Tensor;

constexpr int64_t FEWEST_FLOP = 3'000'000;  // a call costs some 10 microseconds more than one of MKL's
constexpr int64_t STEP = 64;  // of the number of tokens: a new shape is compiled, in about a millisecond

// Matrices that lie in memory row by row or column by column, and do not overlap.
bool dense(const Tensor& t) {
    const auto last = t.dim() - 1;
    const auto sizes = t.sizes(), strides = t.strides();
    const auto along = [&](int64_t inner, int64_t outer) { return strides[inner] == 1 && strides[outer] >= sizes[inner]; };
    return t.scalar_type() == at::kFloat && !t.is_neg() && (along(last, last - 1) || along(last - 1, last)) &&
           (last == 1 || strides[0] >= sizes[1] * sizes[2]);
}

// The dimension of a matrix `a` that counts tokens in a layer's products, whole steps of which oneDNN multiplies: its rows, or, if it lies
// column by column, as the gradient of outputs does in that of weights, what is summed over.
int64_t tokens(const Tensor& a) { return a.stride(1) == 1 ? 0 : 1; }

int64_t whole_steps(const Tensor& a) { return a.size(tokens(a)) / STEP * STEP; }

// [m, k] x [k, n], or [batch, m, k] x [batch, k, n].
bool fits(const Tensor& a, const Tensor& b, int64_t dims) {
    if (a.dim() != dims || b.dim() != dims || a.size(dims - 1) != b.size(dims - 2) || !dense(a) || !dense(b)) return false;
    if (dims == 3) return a.size(0) == b.size(0) && 2 * a.numel() * b.size(2) >= FEWEST_FLOP;
    return 2 * whole_steps(a) * a.size(1 - tokens(a)) * b.size(1) >= FEWEST_FLOP;
}

void multiply(const Tensor& a, const Tensor& b, const Tensor& to) {
    const int64_t rest = a.dim() == 2 ? a.size(tokens(a)) - whole_steps(a) : 0;
    if (!rest) return at::native::mkldnn_matmul(a, b, to, 0.0f, 1.0f);
    const int64_t whole = whole_steps(a);
    if (tokens(a) == 0) {
        at::native::mkldnn_matmul(a.narrow(0, 0, whole), b, to.narrow(0, 0, whole), 0.0f, 1.0f);
        Tensor last = to.narrow(0, whole, rest);
        at::cpu::mm_out(last, a.narrow(0, whole, rest), b);
    } else {
        at::native::mkldnn_matmul(a.narrow(1, 0, whole), b.narrow(0, 0, whole), to, 0.0f, 1.0f);
        Tensor all = to;
        at::cpu::addmm_(all, a.narrow(1, whole, rest), b.narrow(0, whole, rest), 1, 1);
    }
}

std::vector<int64_t> shape(const Tensor& a, const Tensor& b) {
    auto sizes = a.sizes().vec();
    sizes.back() = b.sizes().back();
    return sizes;
}

bool takes(const Tensor& to, const Tensor& a, const Tensor& b) {
    return to.scalar_type() == at::kFloat && to.is_contiguous() && !to.is_neg() && to.sizes() == at::IntArrayRef(shape(a, b)) &&
           !to.is_alias_of(a) && !to.is_alias_of(b);
}

template <Tensor (*otherwise)(const Tensor&, const Tensor&)>
Tensor product(const Tensor& a, const Tensor& b, int64_t dims) {
    if (!fits(a, b, dims)) return otherwise(a, b);
    const Tensor to = a.new_empty(shape(a, b));
    multiply(a, b, to);
    return to;
}

template <Tensor& (*otherwise)(Tensor&, const Tensor&, const Tensor&)>
Tensor& product_out(const Tensor& a, const Tensor& b, int64_t dims, Tensor& to) {
    if (!fits(a, b, dims) || !takes(to, a, b)) return otherwise(to, a, b);
    multiply(a, b, to);
    return to;
}

Tensor mm(const Tensor& a, const Tensor& b) { return product<at::cpu::mm>(a, b, 2); }
Tensor bmm(const Tensor& a, const Tensor& b) { return product<at::cpu::bmm>(a, b, 3); }
Tensor& mm_out(const Tensor& a, const Tensor& b, Tensor& to) { return product_out<at::cpu::mm_out>(a, b, 2, to); }
Tensor& bmm_out(const Tensor& a, const Tensor& b, Tensor& to) { return product_out<at::cpu::bmm_out>(a, b, 3, to); }

struct Silent : c10::WarningHandler {
    void process(const c10::Warning&) override {}
};

}  // namespace

// In this process, from now on. PyTorch would warn that its kernels are replaced: that is what is meant.
extern "C" void replace_products() {
    Silent silent;
    const c10::WarningUtils::WarningHandlerGuard guard(&silent);
    static torch::Library library(torch::Library::IMPL, "aten", c10::DispatchKey::CPU, __FILE__, __LINE__);
    library.impl("mm", mm);
    library.impl("mm.out", mm_out);
    library.impl("bmm", bmm);
    library.impl("bmm.out", bmm_out);
}
