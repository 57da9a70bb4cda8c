#include "edges.h"

#include <algorithm>
#include <cstring>

#include "kernels.h"
#include "parallel.h"

namespace gwsss_fast {
namespace {

template <class T>
constexpr bool kIsBFloat16 = std::is_same_v<T, BFloat16>;

// Rows of scores that are worked on together: enough for the product with the values to run at full speed, few enough
// for them to stay in the cache.
constexpr int64_t kBlock = 224;
constexpr int64_t kGrain = 16384;  // values that a thread takes at least

struct Block {
  int64_t first, rows;
};

int64_t blocks(int64_t positions) { return (positions + kBlock - 1) / kBlock; }

// Blocks of nearly equal size.
Block block(int64_t positions, int64_t number) {
  const int64_t count = blocks(positions), first = number * positions / count;
  return {first, (number + 1) * positions / count - first};
}

// Independent tasks, each by one thread; where they are fewer than threads, one after another, and their products and
// rows are shared out.
template <class Work>
void run_tasks(int64_t count, const Work& work) {
  if (count >= threads())
    parallel_tasks(count, work);
  else
    for (int64_t i = 0; i < count; ++i) work(i);
}

template <class Work>
void for_rows(int64_t rows, int64_t columns, const Work& work) {
  parallel_for(rows, std::max<int64_t>(1, kGrain / std::max<int64_t>(1, columns)), work);
}

// Rows of a factor or of values, `width` each.
template <class T>
Matrix rows_of(const T* from, const Block& of, int64_t width) {
  return matrix(from + of.first * width, of.rows, width);
}

void sum(const float* a, float factor, const float* b, int64_t count, float* to) {
  kernels().sum_float(a, factor, b, count, to);
}
void sum(const BFloat16* a, float factor, const BFloat16* b, int64_t count, BFloat16* to) {
  kernels().sum_bfloat16(a, factor, b, count, to);
}

// What the messages are added to, in float32; false if nothing. Of BFloat16, residual and message are summed and rounded
// first.
template <class T>
bool start(const Receiver<T>& receiver, int64_t first, int64_t count, T* out) {
  const T* one = receiver.residual != nullptr ? receiver.residual + first : nullptr;
  const T* other = receiver.message != nullptr ? receiver.message + first : nullptr;
  if (other != nullptr)
    sum(one, receiver.message_scale, other, count, out);
  else if (one != nullptr)
    std::memcpy(out, one, count * sizeof(T));
  return one != nullptr || other != nullptr;
}

template <class T>
void attend_block(const EdgeSizes& sizes, const Receiver<T>& receiver, const Block& of) {
  const int64_t n = sizes.positions, senders = receiver.senders.size(), columns = senders * n;
  T* out = receiver.out + of.first * sizes.channels;
  bool started = start(receiver, of.first * sizes.channels, of.rows * sizes.channels, out);
  if (senders == 0 && !started) std::memset(out, 0, of.rows * sizes.channels * sizeof(T));
  Buffer<T> weights(of.rows * columns);
  for (int64_t s = 0; s < senders; ++s) {
    const Sender<T>& sender = receiver.senders[s];
    const Product scores(rows_of(sender.left, of, sizes.rank), matrix(sender.right, n, sizes.rank).transposed());
    const SoftmaxRows rows{scores.data<float>(),    n, weights.data() + s * n, columns, kIsBFloat16<T>,
                           sender.row_lse + of.first};
    for_rows(of.rows, n, [&](int64_t begin, int64_t end) { kernels().softmax(rows, begin, end); });
  }
  // Senders whose values follow each other are one product: its sum is rounded once.
  for (int64_t s = 0, end; s < senders; s = end) {
    const T* values = receiver.senders[s].values;
    for (end = s + 1; end < senders && receiver.senders[end].values == values + (end - s) * n * sizes.channels;) ++end;
    multiply(matrix(weights.data() + s * n, of.rows, (end - s) * n, columns),
             matrix(values, (end - s) * n, sizes.channels), matrix(out, of.rows, sizes.channels), started);
    started = true;
  }
}

// Sums of products that are kept in float32: added at once, or each by way of a rounded product.
template <class T>
class Summed {
 public:
  Summed(float* sum, int64_t rows, int64_t columns)
      : sum_(sum), rows_(rows), columns_(columns), product_(kIsBFloat16<T> ? rows * columns : 0) {}

  void add(const Matrix& a, const Matrix& b) {
    if constexpr (kIsBFloat16<T>) {
      multiply(a, b, matrix(product_.data(), rows_, columns_));
      for_rows(rows_, columns_, [&](int64_t begin, int64_t end) {
        kernels().accumulate(product_.data() + begin * columns_, (end - begin) * columns_, sum_ + begin * columns_);
      });
    } else {
      multiply(a, b, matrix(sum_, rows_, columns_), true);
    }
  }

 private:
  float* sum_;
  int64_t rows_, columns_;
  Buffer<T> product_;
};

template <class T>
void edge_backward(const EdgeSizes& sizes, const EdgeGradient<T>& edge) {
  const int64_t n = sizes.positions, rank = sizes.rank, channels = sizes.channels;
  Summed<T> grad_values(edge.grad_values, n, channels), grad_right(edge.grad_right, n, rank);
  Buffer<BFloat16> rounded(kIsBFloat16<T> ? std::min(n, kBlock) * n : 0);
  for (int64_t number = 0; number < blocks(n); ++number) {
    const Block of = block(n, number);
    const Matrix grad = rows_of(edge.grad, of, channels);
    const Product scores(rows_of(edge.left, of, rank), matrix(edge.right, n, rank).transposed());
    const Product slopes(grad, matrix(edge.values, n, channels).transposed());
    T* weights = kIsBFloat16<T> ? reinterpret_cast<T*>(rounded.data()) : scores.data<T>();
    const SoftmaxGradientRows rows{scores.data<float>(),        n,       slopes.data<T>(), kIsBFloat16<T>,
                                   edge.row_lse + of.first, weights, slopes.data<T>()};
    for_rows(of.rows, n, [&](int64_t begin, int64_t end) { kernels().softmax_gradient(rows, begin, end); });
    const Matrix gradient = matrix(slopes.data<T>(), of.rows, n);
    grad_values.add(matrix(weights, of.rows, n).transposed(), grad);
    grad_right.add(gradient.transposed(), rows_of(edge.own_left, of, rank));
    Summed<T> grad_left(edge.grad_left + of.first * rank, of.rows, rank);
    grad_left.add(gradient, matrix(edge.own_right, n, rank));
  }
}

}  // namespace

template <class T>
void attend(const EdgeSizes& sizes, const std::vector<Receiver<T>>& receivers) {
  const int64_t each = blocks(sizes.positions);
  run_tasks(receivers.size() * each,
            [&](int64_t i) { attend_block(sizes, receivers[i / each], block(sizes.positions, i % each)); });
}

template <class T>
void attend_backward(const EdgeSizes& sizes, const std::vector<std::vector<EdgeGradient<T>>>& rounds) {
  for (const auto& edges : rounds)
    run_tasks(edges.size(), [&](int64_t i) { edge_backward(sizes, edges[i]); });
}

template <>
Widened<float>::Widened(const float* values, int64_t) : data_(values) {}

template <>
Widened<BFloat16>::Widened(const BFloat16* values, int64_t count) : copy_(count), data_(copy_.data()) {
  parallel_for(count, kGrain, [&](int64_t begin, int64_t end) {
    kernels().widen(values + begin, end - begin, copy_.data() + begin);
  });
}

template <>
void narrow(const float* a, const float* b, int64_t count, float* to) {
  parallel_for(count, kGrain, [&](int64_t begin, int64_t end) {
    kernels().sum_float(a != nullptr ? a + begin : nullptr, 1, b + begin, end - begin, to + begin);
  });
}

template <>
void narrow(const float* a, const float* b, int64_t count, BFloat16* to) {
  parallel_for(count, kGrain, [&](int64_t begin, int64_t end) {
    kernels().narrow_sum(a != nullptr ? a + begin : nullptr, b + begin, end - begin, to + begin);
  });
}

template void attend(const EdgeSizes&, const std::vector<Receiver<float>>&);
template void attend(const EdgeSizes&, const std::vector<Receiver<BFloat16>>&);
template void attend_backward(const EdgeSizes&, const std::vector<std::vector<EdgeGradient<float>>>&);
template void attend_backward(const EdgeSizes&, const std::vector<std::vector<EdgeGradient<BFloat16>>>&);

}  // namespace gwsss_fast
