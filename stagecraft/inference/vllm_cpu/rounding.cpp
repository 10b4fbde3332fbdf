// Values rounded to FP8 or NVFP4 in units of a given scale, with the bits of stagecraft/numerics (`fp8.round_static`, `nvfp4.round_static`).
#pragma GCC optimize("no-unsafe-math-optimizations", "no-associative-math", "no-reciprocal-math", "no-finite-math-only", "signed-zeros")

#include "loops.hpp"

#include <cmath>
#include <cstring>

namespace {

constexpr int64_t BLOCK = 16;
constexpr float E2M1_MAX = 6.0f, E4M3_MAX = 448.0f, E4M3_MIN = 0x1p-9f, E4M3_NORMAL = 0x1p-6f;

// The comparisons leave a value that is no number as it is.
float at_most(float value, float most) { return value > most ? most : value; }

// To nearest, ties to even, of a magnitude. Adding 2^14 leaves a float32 no bits below 2^-9, the step of E4M3's subnormal numbers; above
// them the three bits after the first are kept.
float e4m3(float magnitude) {
    const float clipped = at_most(magnitude, E4M3_MAX);
    uint32_t bits;
    std::memcpy(&bits, &clipped, sizeof bits);
    bits = (bits + 0x7FFFFu + (bits >> 20 & 1u)) & ~0xFFFFFu;
    float kept;
    std::memcpy(&kept, &bits, sizeof kept);
    const float anchored = clipped + 0x1p14f;
    return clipped < E4M3_NORMAL ? anchored - 0x1p14f : clipped == clipped ? kept : clipped;  // the addition may turn NaN into a number
}

float e2m1(float magnitude) {
    const float clipped = at_most(magnitude, E2M1_MAX), anchor = clipped < 2.0f ? 0x1p22f : clipped < 4.0f ? 0x1p23f : 0x1p24f;
    const float anchored = clipped + anchor;
    return anchored - anchor;
}

void nvfp4_block(float scale, const float* x, float* y) {
    float most = 0.0f;
    for (int64_t i = 0; i < BLOCK; ++i) most = std::fabs(x[i]) > most || x[i] != x[i] ? std::fabs(x[i]) : most;  // NaN stays
    float block = most / (E2M1_MAX * scale);
    block = block == 0.0f ? 1.0f : block < E4M3_MIN ? E4M3_MIN : block;
    const float unit = e4m3(block) * scale;
    for (int64_t i = 0; i < BLOCK; ++i) y[i] = std::copysign(e2m1(std::fabs(x[i]) / unit) * unit, x[i]);
}

}  // namespace

// y [n] <- x [n], n a multiple of 16 for NVFP4.
extern "C" void round_to(int64_t format, float scale, const float* x, int64_t n, float* y) {
    if (format == FP8)
        for (int64_t i = 0; i < n; ++i) y[i] = std::copysign(e4m3(std::fabs(x[i]) / scale) * scale, x[i]);
    else
        for (int64_t i = 0; i < n; i += BLOCK) nvfp4_block(scale, x + i, y + i);
}
