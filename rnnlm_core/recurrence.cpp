// The loop over the steps of a recurrent layer, forward and backward, for one CPU core: see recurrence.py, which has
// the same in PyTorch. Each row of a minibatch is computed alone and in one order, so that any split of the rows over
// threads gives the same bits.
//
// Two things are worth the native code. The recurrent weights are laid out once per call for the products of all
// steps, where a library lays them out again in each; and what stands between the products is one pass over memory.

#include "vectors.h"

namespace {

constexpr int DEPTH = 128;  // rows of a panel that are used together: they stay in the first cache

// --- products -----------------------------------------------------------------------------------------------------

// A matrix (depth, width) as panels of two vectors' width, each (depth, 2 * size), filled up with zeros.
template <typename T>
struct Packed {
    static constexpr int panel = 2 * Vector<T>::size;
    int64_t depth, width, panels;
    Buffer<T> values;

    // Element (k, n) of the matrix is source[k * down + n * right].
    Packed(const T* source, int64_t depth, int64_t width, int64_t down, int64_t right)
        : depth(depth), width(width), panels((width + panel - 1) / panel), values(room_for<T>(panels * depth * panel)) {
        for (int64_t p = 0; p < panels; ++p) {
            const int64_t first = p * panel, wide = width - first < panel ? width - first : panel;
            T* target = values.get() + p * depth * panel;
            if (wide < panel) std::memset(target, 0, depth * panel * sizeof(T));
            if (right == 1)
                for (int64_t k = 0; k < depth; ++k)
                    std::memcpy(target + k * panel, source + k * down + first, wide * sizeof(T));
            else
                for (int64_t j = 0; j < wide; ++j)
                    for (int64_t k = 0; k < depth; ++k)
                        target[k * panel + j] = source[k * down + (first + j) * right];
        }
    }
};

template <typename T, int ROWS>
inline void add_tile(const T* a, int64_t lda, const T* b, int64_t depth, T* c, int64_t ldc) {
    using V = typename Vector<T>::type;
    constexpr int size = Vector<T>::size;
    V sums[ROWS][2];
    for (int i = 0; i < ROWS; ++i) {
        sums[i][0] = *reinterpret_cast<const V*>(c + i * ldc);
        sums[i][1] = *reinterpret_cast<const V*>(c + i * ldc + size);
    }
    for (int64_t k = 0; k < depth; ++k) {
        const V first = *reinterpret_cast<const V*>(b + k * 2 * size);
        const V second = *reinterpret_cast<const V*>(b + k * 2 * size + size);
#pragma GCC unroll 16
        for (int i = 0; i < ROWS; ++i) {
            const T factor = a[i * lda + k];
            sums[i][0] += factor * first;
            sums[i][1] += factor * second;
        }
    }
    for (int i = 0; i < ROWS; ++i) {
        *reinterpret_cast<V*>(c + i * ldc) = sums[i][0];
        *reinterpret_cast<V*>(c + i * ldc + size) = sums[i][1];
    }
}

template <typename T, int ROWS>
void add_rows(int64_t rows, const T* a, int64_t lda, const T* b, int64_t depth, T* c, int64_t ldc) {
    if constexpr (ROWS > 0) {
        if (rows == ROWS)
            add_tile<T, ROWS>(a, lda, b, depth, c, ldc);
        else
            add_rows<T, ROWS - 1>(rows, a, lda, b, depth, c, ldc);
    }
}

// Room for the left factor of a product, whose rows must not lie a power of two apart: the first cache would hold
// eight of them at most.
template <typename T>
struct Spread {
    static int64_t stride(int64_t depth) { return (depth + 31) / 32 * 32 + 16; }
    Buffer<T> values;
    Spread(int64_t rows, int64_t depth) : values(room_for<T>(rows * stride(depth))) {}
};

// c (rows, b.width) += a (rows, b.depth) b. `turn`: a matrix larger than the second cache is read from front to back
// and from back to front in turn, so that a part of it is still there.
template <typename T>
void add_product(int64_t rows, const T* left_factor, int64_t apart, const Packed<T>& b, T* c, int64_t ldc,
                 const Spread<T>& room, bool turn) {
    constexpr int panel = Packed<T>::panel;
    T* a = room.values.get();
    const int64_t lda = Spread<T>::stride(b.depth);
    for (int64_t i = 0; i < rows; ++i) std::memcpy(a + i * lda, left_factor + i * apart, b.depth * sizeof(T));
    const int64_t blocks = (rows + MOST_ROWS - 1) / MOST_ROWS;
    T edge[MOST_ROWS * panel];
    for (int64_t q = 0; q < b.panels; ++q) {
        const int64_t p = turn ? b.panels - 1 - q : q;
        const int64_t left = b.width - p * panel;
        for (int64_t k = 0; k < b.depth; k += DEPTH) {
            const int64_t depth = b.depth - k < DEPTH ? b.depth - k : DEPTH;
            const T* values = b.values.get() + (p * b.depth + k) * panel;
            for (int64_t block = 0; block < blocks; ++block) {
                const int64_t from = block * rows / blocks, upto = (block + 1) * rows / blocks;
                T* target = c + from * ldc + p * panel;
                if (left >= panel) {
                    add_rows<T, MOST_ROWS>(upto - from, a + from * lda + k, lda, values, depth, target, ldc);
                    continue;
                }
                for (int64_t i = 0; i < upto - from; ++i)
                    for (int64_t j = 0; j < panel; ++j) edge[i * panel + j] = j < left ? target[i * ldc + j] : T(0);
                add_rows<T, MOST_ROWS>(upto - from, a + from * lda + k, lda, values, depth, edge, panel);
                for (int64_t i = 0; i < upto - from; ++i)
                    std::memcpy(target + i * ldc, edge + i * panel, left * sizeof(T));
            }
        }
    }
}

// --- cells --------------------------------------------------------------------------------------------------------

enum Cell { RNN = 0, GRU = 1, GRU_BEFORE = 2, LSTM = 3 };

// All tensors are row-major and contiguous; G gates, rows of the whole minibatch B, of which from..upto are done here.
template <typename T>
struct Forward {
    int64_t cell, steps, batch, hidden, from, upto;
    const T* gates;  // (steps, B, G H): the input's share; or (V, G H), a row for each id
    const int32_t* ids;  // (steps, B), or null
    const T* input_bias;  // (G H), or null
    const T* weights;  // (H, G H): element (k, n) is weights[k * down + n * right]
    int64_t down, right;
    const T* bias;  // (G H), or null
    const T* first;  // (B, H): the state before
    const T* first_cell;  // (B, H): the LSTM's, or null
    T* outputs;  // (steps, B, H)
    T* kept;  // (steps, B, G H): the gates' values, for the way back
    T* more;  // (steps, B, H): GRU: the candidate's recurrent share; before: R ⊙ H; LSTM: C
    T* tanhs;  // (steps, B, H): LSTM: tanh(C)
};

// sums = the first `upto` of one row's gates, before the recurrent product
template <typename T>
inline void start_gates(const T* __restrict gates, const T* input_bias, const T* bias, int64_t upto,
                        T* __restrict sums) {
    if (input_bias && bias)
        for (int64_t j = 0; j < upto; ++j) sums[j] = gates[j] + (input_bias[j] + bias[j]);
    else if (input_bias || bias) {
        const T* one = bias ? bias : input_bias;
        for (int64_t j = 0; j < upto; ++j) sums[j] = gates[j] + one[j];
    } else
        std::memcpy(sums, gates, upto * sizeof(T));
}

template <typename T>
void forward(const Forward<T>& f) {
    const int64_t H = f.hidden, rows = f.upto - f.from;
    const int64_t G = f.cell == RNN ? 1 : f.cell == LSTM ? 4 : 3, width = G * H;
    const bool before = f.cell == GRU_BEFORE;
    const Packed<T> weights(f.weights, H, before ? 2 * H : width, f.down, f.right);
    const Packed<T> candidate(f.weights + 2 * H * f.right, H, before ? H : 0, f.down, f.right);
    const auto row_of = [&](int64_t t, int64_t i) {
        const int64_t place = t * f.batch + f.from + i;
        return f.gates + (f.ids ? f.ids[place] : place) * width;
    };
    const Spread<T> room(rows, H);
    const Buffer<T> zeros = room_for<T>(H);
    std::memset(zeros.get(), 0, H * sizeof(T));
    for (int64_t t = 0; t < f.steps; ++t) {
        const T* last = (t ? f.outputs + (t - 1) * f.batch * H : f.first) + f.from * H;
        T* now = f.outputs + (t * f.batch + f.from) * H;
        T* sums = f.kept + (t * f.batch + f.from) * width;
        T* more = f.more ? f.more + (t * f.batch + f.from) * H : nullptr;
        for (int64_t i = 0; i < rows; ++i) {
            T* s = sums + i * width;
            start_gates(row_of(t, i), f.input_bias, f.bias, f.cell == GRU ? 2 * H : width, s);
            if (f.cell != GRU) continue;
            if (f.bias)
                std::memcpy(s + 2 * H, f.bias + 2 * H, H * sizeof(T));
            else
                std::memset(s + 2 * H, 0, H * sizeof(T));
        }
        add_product(rows, last, H, weights, sums, width, room, t & 1);
        if (f.cell == RNN) {
            for (int64_t i = 0; i < rows * H; ++i) now[i] = sums[i] = tanh_of(sums[i]);
        } else if (f.cell == LSTM) {
            const T* cells = (t ? f.more + (t - 1) * f.batch * H : f.first_cell) + f.from * H;
            T* tanhs = f.tanhs + (t * f.batch + f.from) * H;
            for (int64_t i = 0; i < rows; ++i) {
                T* __restrict s = sums + i * width;
                const T* __restrict c = cells + i * H;
                T* __restrict next = more + i * H;
                T* __restrict squashed = tanhs + i * H;
                T* __restrict h = now + i * H;
#pragma GCC ivdep
                for (int64_t j = 0; j < H; ++j) {
                    const T in = sigmoid(s[j]), keep = sigmoid(s[H + j]);
                    const T cell = tanh_of(s[2 * H + j]), out = sigmoid(s[3 * H + j]);
                    const T value = keep * c[j] + in * cell;
                    const T seen = tanh_of(value);
                    s[j] = in, s[H + j] = keep, s[2 * H + j] = cell, s[3 * H + j] = out;
                    next[j] = value, squashed[j] = seen;
                    h[j] = out * seen;
                }
            }
        } else if (f.cell == GRU) {
            for (int64_t i = 0; i < rows; ++i) {
                T* __restrict s = sums + i * width;
                const T* __restrict g = row_of(t, i) + 2 * H;
                const T* __restrict outer = f.input_bias ? f.input_bias + 2 * H : zeros.get();
                const T* __restrict h = last + i * H;
                T* __restrict share = more + i * H;
                T* __restrict next = now + i * H;
#pragma GCC ivdep
                for (int64_t j = 0; j < H; ++j) {
                    const T reset = sigmoid(s[j]), update = sigmoid(s[H + j]), recurrent = s[2 * H + j];
                    const T proposed = tanh_of(g[j] + outer[j] + reset * recurrent);
                    s[j] = reset, s[H + j] = update, s[2 * H + j] = proposed;
                    share[j] = recurrent;
                    next[j] = proposed + update * (h[j] - proposed);
                }
            }
        } else {
            for (int64_t i = 0; i < rows; ++i) {
                T* __restrict s = sums + i * width;
                const T* __restrict h = last + i * H;
                T* __restrict product = more + i * H;
#pragma GCC ivdep
                for (int64_t j = 0; j < H; ++j) {
                    const T reset = sigmoid(s[j]);
                    s[j] = reset, s[H + j] = sigmoid(s[H + j]);
                    product[j] = reset * h[j];
                }
            }
            add_product(rows, more, H, candidate, sums + 2 * H, width, room, t & 1);
            for (int64_t i = 0; i < rows; ++i) {
                T* __restrict s = sums + i * width;
                const T* __restrict h = last + i * H;
                T* __restrict next = now + i * H;
#pragma GCC ivdep
                for (int64_t j = 0; j < H; ++j) {
                    const T proposed = tanh_of(s[2 * H + j]), update = s[H + j];
                    s[2 * H + j] = proposed;
                    next[j] = update * h[j] + (T(1) - update) * proposed;
                }
            }
        }
    }
}

template <typename T>
struct Backward {
    int64_t cell, steps, batch, hidden, from, upto;
    const T* weights;  // as in Forward
    int64_t down, right;
    const T* first;
    const T* first_cell;
    const T* outputs;
    const T* kept;
    const T* more;
    const T* tanhs;
    const T* from_above;  // (steps, B, H): gradients of the outputs, or null
    T* state;  // (B, H): gradient of the last state; becomes that of the first
    T* cell_state;  // (B, H): the LSTM's
    T* gates;  // (steps, B, G H): gradients of the input's share
    T* recurrent;  // (steps, B, 3 H): GRU: gradients of the recurrent share; else null, they are the same
    const int32_t* ids;  // as in Forward
    T* table;  // (V, G H): gradients of the rows that were looked up are added here; or null
};

template <typename T>
void backward(const Backward<T>& f) {
    const int64_t H = f.hidden, rows = f.upto - f.from;
    const int64_t G = f.cell == RNN ? 1 : f.cell == LSTM ? 4 : 3, width = G * H;
    const bool before = f.cell == GRU_BEFORE;
    // Transposed.
    const Packed<T> weights(f.weights, before ? 2 * H : width, H, f.right, f.down);
    const Packed<T> candidate(f.weights + 2 * H * f.right, before ? H : 0, H, f.right, f.down);
    const Spread<T> room(rows, width);
    const Buffer<T> spare = room_for<T>(before ? rows * H : 0);
    T* state = f.state + f.from * H;
    T* cell_state = f.cell_state ? f.cell_state + f.from * H : nullptr;
    for (int64_t t = f.steps - 1; t >= 0; --t) {
        const int64_t row = t * f.batch + f.from;
        const T* last = (t ? f.outputs + (t - 1) * f.batch * H : f.first) + f.from * H;
        const T* kept = f.kept + row * width;
        T* gates = f.gates + row * width;
        if (f.from_above) {
            const T* above = f.from_above + row * H;
            for (int64_t i = 0; i < rows * H; ++i) state[i] += above[i];
        }
        if (f.cell == RNN) {
            for (int64_t i = 0; i < rows * H; ++i) gates[i] = state[i] * (T(1) - kept[i] * kept[i]);
            std::memset(state, 0, rows * H * sizeof(T));
            add_product(rows, gates, width, weights, state, H, room, t & 1);
        } else if (f.cell == LSTM) {
            const T* cells = (t ? f.more + (t - 1) * f.batch * H : f.first_cell) + f.from * H;
            for (int64_t i = 0; i < rows; ++i) {
                const T* __restrict s = kept + i * width;
                const T* __restrict c = cells + i * H;
                const T* __restrict seen = f.tanhs + (row + i) * H;
                T* __restrict d = gates + i * width;
                T* __restrict dh = state + i * H;
                T* __restrict dc = cell_state + i * H;
#pragma GCC ivdep
                for (int64_t j = 0; j < H; ++j) {
                    const T in = s[j], keep = s[H + j], cell = s[2 * H + j], out = s[3 * H + j];
                    const T through = dc[j] + dh[j] * out * (T(1) - seen[j] * seen[j]);
                    d[j] = through * cell * in * (T(1) - in);
                    d[H + j] = through * c[j] * keep * (T(1) - keep);
                    d[2 * H + j] = through * in * (T(1) - cell * cell);
                    d[3 * H + j] = dh[j] * seen[j] * out * (T(1) - out);
                    dc[j] = through * keep;
                    dh[j] = T(0);
                }
            }
            add_product(rows, gates, width, weights, state, H, room, t & 1);
        } else if (f.cell == GRU) {
            T* shares = f.recurrent + row * width;
            for (int64_t i = 0; i < rows; ++i) {
                const T* __restrict s = kept + i * width;
                const T* __restrict h = last + i * H;
                const T* __restrict recurrent = f.more + (row + i) * H;
                T* __restrict d = gates + i * width;
                T* __restrict share = shares + i * width;
                T* __restrict dh = state + i * H;
#pragma GCC ivdep
                for (int64_t j = 0; j < H; ++j) {
                    const T reset = s[j], update = s[H + j], proposed = s[2 * H + j];
                    const T inner = dh[j] * (T(1) - update) * (T(1) - proposed * proposed);
                    const T of_reset = inner * recurrent[j] * reset * (T(1) - reset);
                    const T of_update = dh[j] * (h[j] - proposed) * update * (T(1) - update);
                    d[j] = share[j] = of_reset;
                    d[H + j] = share[H + j] = of_update;
                    d[2 * H + j] = inner;
                    share[2 * H + j] = inner * reset;
                    dh[j] *= update;
                }
            }
            add_product(rows, shares, width, weights, state, H, room, t & 1);
        } else {
            for (int64_t i = 0; i < rows; ++i) {
                const T* __restrict s = kept + i * width;
                const T* __restrict h = last + i * H;
                T* __restrict d = gates + i * width;
                T* __restrict dh = state + i * H;
#pragma GCC ivdep
                for (int64_t j = 0; j < H; ++j) {
                    const T update = s[H + j], proposed = s[2 * H + j];
                    d[H + j] = dh[j] * (h[j] - proposed) * update * (T(1) - update);
                    d[2 * H + j] = dh[j] * (T(1) - update) * (T(1) - proposed * proposed);
                    dh[j] *= update;
                }
            }
            std::memset(spare.get(), 0, rows * H * sizeof(T));
            add_product(rows, gates + 2 * H, width, candidate, spare.get(), H, room, t & 1);
            for (int64_t i = 0; i < rows; ++i) {
                const T* __restrict s = kept + i * width;
                const T* __restrict h = last + i * H;
                const T* __restrict through = spare.get() + i * H;
                T* __restrict d = gates + i * width;
                T* __restrict dh = state + i * H;
#pragma GCC ivdep
                for (int64_t j = 0; j < H; ++j) {
                    const T reset = s[j];
                    d[j] = through[j] * h[j] * reset * (T(1) - reset);
                    dh[j] += through[j] * reset;
                }
            }
            add_product(rows, gates, width, weights, state, H, room, t & 1);
        }
        if (!f.table) continue;
        for (int64_t i = 0; i < rows; ++i) {
            const T* __restrict from = gates + i * width;
            T* __restrict to = f.table + f.ids[row + i] * width;
            for (int64_t j = 0; j < width; ++j) to[j] += from[j];
        }
    }
}

// The same for threads, which must not add to the same numbers: columns from..upto of all rows, in the order above.
template <typename T>
struct Table {
    int64_t steps, batch, width, from, upto;
    const int32_t* ids;
    const T* gates;
    T* table;
};

template <typename T>
void add_rows_looked_up(const Table<T>& f) {
    for (int64_t t = f.steps - 1; t >= 0; --t)
        for (int64_t i = t * f.batch; i < (t + 1) * f.batch; ++i) {
            const T* __restrict from = f.gates + i * f.width;
            T* __restrict to = f.table + f.ids[i] * f.width;
            for (int64_t j = f.from; j < f.upto; ++j) to[j] += from[j];
        }
}

}  // namespace

extern "C" {
int rnnlm_forward_float(const Forward<float>* f) { return answer(forward<float>, *f); }
int rnnlm_forward_double(const Forward<double>* f) { return answer(forward<double>, *f); }
int rnnlm_backward_float(const Backward<float>* f) { return answer(backward<float>, *f); }
int rnnlm_backward_double(const Backward<double>* f) { return answer(backward<double>, *f); }
int rnnlm_table_float(const Table<float>* f) { return answer(add_rows_looked_up<float>, *f); }
int rnnlm_table_double(const Table<double>* f) { return answer(add_rows_looked_up<double>, *f); }
}
