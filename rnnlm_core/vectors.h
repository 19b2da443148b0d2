// What the native code shares: vectors as wide as this machine's, exp, sigmoid and tanh that fill them, memory, errors.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>

namespace {

#if defined(__AVX512F__)
constexpr int VECTOR_BYTES = 64, MOST_ROWS = 12;  // 24 sums, 2 weights, of 32 registers
#elif defined(__AVX__)
constexpr int VECTOR_BYTES = 32, MOST_ROWS = 6;  // 12 sums, 2 weights, of 16 registers
#elif defined(__aarch64__)
constexpr int VECTOR_BYTES = 16, MOST_ROWS = 12;
#else
constexpr int VECTOR_BYTES = 16, MOST_ROWS = 6;
#endif

template <typename T>
struct Vector {
    typedef T type __attribute__((vector_size(VECTOR_BYTES), aligned(alignof(T)), may_alias));
    static constexpr int size = VECTOR_BYTES / sizeof(T);
};

// Memory that begins where a vector does: one that lies across two lines of the cache costs two accesses.
struct Free {
    void operator()(void* memory) const { ::operator delete(memory, std::align_val_t(64)); }
};
template <typename T>
using Buffer = std::unique_ptr<T[], Free>;

template <typename T>
Buffer<T> room_for(int64_t number) {
    return Buffer<T>(static_cast<T*>(::operator new(number * sizeof(T), std::align_val_t(64))));
}

// --- exp, sigmoid, tanh -------------------------------------------------------------------------------------------
// In single precision as polynomials that a compiler turns into vector instructions (after Cephes: Moshier, 1992),
// within 3e-7 of the exact value; in double precision those of the C library.

inline float bits_as_float(int32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

inline float exp_of(float x) {
    x = x > 88.f ? 88.f : x;  // what overflows, or is nothing, is of no interest between gates
    x = x < -87.f ? -87.f : x;
    constexpr float magic = 12582912.f;  // 1.5 * 2^23: adding it leaves the nearest integer in the last bits
    const float shifted = x * 1.44269504088896341f + magic;
    const float n = shifted - magic;
    float r = x - n * 0.693359375f;
    r = r + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.f;
    return p * bits_as_float((static_cast<int32_t>(n) + 127) << 23);
}
inline double exp_of(double x) { return std::exp(x); }

template <typename T>
inline T sigmoid(T x) {
    return T(1) / (T(1) + exp_of(-x));
}

inline float tanh_of(float x) {
    const float far = 1.f - 2.f / (exp_of(2.f * x) + 1.f);
    const float z = x * x;  // near 0 the difference above would lose its digits
    float p = -5.70498872745e-3f;
    p = p * z + 2.06390887954e-2f;
    p = p * z - 5.37397155531e-2f;
    p = p * z + 1.33314422036e-1f;
    p = p * z - 3.33332819422e-1f;
    const float near = p * z * x + x;
    return z < 0.390625f ? near : far;
}
inline double tanh_of(double x) { return std::tanh(x); }

// --- the way out ----------------------------------------------------------------------------------------------------

template <typename F, typename A>
int answer(F compute, const A& arguments) {
    try {
        compute(arguments);
        return 0;
    } catch (const std::bad_alloc&) {
        return 1;
    }
}

}  // namespace
