// Cross-entropy of rows of logits, which become its gradients: see output_loss.py, which has the same in PyTorch.
// A row stays in the cache while it is read several times; each is computed alone, so that any split of the rows
// over threads gives the same bits.

#include "vectors.h"

namespace {

// All tensors are row-major and contiguous; rows from..upto are done here.
template <typename T>
struct CrossEntropy {
    int64_t width, from, upto;
    T* logits;  // (rows, V), without their bias; become the gradients
    const T* bias;  // (V)
    const int64_t* targets;  // (rows)
    double scale;  // of the gradients
    T* losses;  // (rows)
    T* gradient;  // (V): that of the bias, to which these rows' are added
};

template <typename T>
inline T largest(const T* values, int64_t number) {
    using V = typename Vector<T>::type;
    constexpr int size = Vector<T>::size;
    T most = values[0];
    int64_t j = 0;
    if (number >= size) {
        V lanes = *reinterpret_cast<const V*>(values);
        for (j = size; j + size <= number; j += size) {
            const V next = *reinterpret_cast<const V*>(values + j);
            lanes = next > lanes ? next : lanes;
        }
        for (int k = 0; k < size; ++k) most = lanes[k] > most ? lanes[k] : most;
    }
    for (; j < number; ++j) most = values[j] > most ? values[j] : most;
    return most;
}

// In lanes, and those in double precision: a sum of 100,000 small numbers keeps its digits.
template <typename T>
inline double sum_of(const T* values, int64_t number) {
    using V = typename Vector<T>::type;
    constexpr int size = Vector<T>::size;
    V lanes = {};
    int64_t j = 0;
    for (; j + size <= number; j += size) lanes += *reinterpret_cast<const V*>(values + j);
    double sum = 0;
    for (int k = 0; k < size; ++k) sum += lanes[k];
    for (; j < number; ++j) sum += values[j];
    return sum;
}

template <typename T>
void cross_entropy(const CrossEntropy<T>& f) {
    for (int64_t i = f.from; i < f.upto; ++i) {
        T* __restrict row = f.logits + i * f.width;
        T* __restrict gradient = f.gradient;
        const int64_t target = f.targets[i];
        for (int64_t j = 0; j < f.width; ++j) row[j] += f.bias[j];
        const T most = largest(row, f.width), wanted = row[target] - most;
        for (int64_t j = 0; j < f.width; ++j) {
            const T less = row[j] - most;
            row[j] = less < T(-80) ? T(0) : exp_of(less);  // what is next to nothing would be slow: a denormal number
        }
        const double sum = sum_of(row, f.width);
        f.losses[i] = T(std::log(sum) - wanted);
        const T factor = T(f.scale / sum);
        const T one = T(f.scale);
        // In two passes: the target's gradient is its probability less one.
        for (int64_t j = 0; j < f.width; ++j) row[j] *= factor;
        row[target] -= one;
        for (int64_t j = 0; j < f.width; ++j) gradient[j] += row[j];
    }
}

}  // namespace

extern "C" {
int rnnlm_loss_float(const CrossEntropy<float>* f) { return answer(cross_entropy<float>, *f); }
int rnnlm_loss_double(const CrossEntropy<double>* f) { return answer(cross_entropy<double>, *f); }
}
