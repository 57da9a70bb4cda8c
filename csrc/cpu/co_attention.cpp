// Messages between the images of a group: the edges of every pair, and their registration with PyTorch.

#include <cstring>
#include <tuple>
#include <vector>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "arguments.h"
#include "edges.h"

namespace gwsss_fast {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

struct GroupSizes : EdgeSizes {
  int64_t groups, nodes;

  int64_t factors() const { return groups * nodes * positions * rank; }
  int64_t values() const { return groups * nodes * positions * channels; }
};

GroupSizes check(const Tensor& p, const Tensor& q, const Tensor& g) {
  const char* name = "co_attention";
  check_layout(name, "g", g, 4, g.scalar_type());
  check_layout(name, "p", p, 4, g.scalar_type());
  check_layout(name, "q", q, 4, g.scalar_type());
  for (int64_t axis = 0; axis < 4; ++axis) {
    STD_TORCH_CHECK(axis == 3 || p.size(axis) == g.size(axis), "co_attention: p must agree with g in B, K and N");
    STD_TORCH_CHECK(q.size(axis) == p.size(axis), "co_attention: q must have p's shape");
  }
  STD_TORCH_CHECK(p.size(3) > 0, "co_attention: p has no channels");
  STD_TORCH_CHECK(g.size(3) > 0, "co_attention: g has no channels");
  return {{g.size(2), p.size(3), g.size(3)}, g.size(0), g.size(1)};
}

// Whether the receiver's factor of edge (i, j) is p, and the sender's q; else they change places.
bool forwards(int64_t i, int64_t j, bool transpose) { return !transpose || i < j; }

template <class T>
void run(const GroupSizes& sizes, const Tensor& p, const Tensor& q, const Tensor& g, bool transpose, Tensor& messages,
         Tensor& row_lse) {
  const Widened<T> wide_p(values_of<T>(p), sizes.factors()), wide_q(values_of<T>(q), sizes.factors());
  const int64_t factor = sizes.positions * sizes.rank, node = sizes.positions * sizes.channels;
  float* lse = row_lse.mutable_data_ptr<float>();
  std::vector<Receiver<T>> receivers;
  for (int64_t b = 0; b < sizes.groups; ++b)
    for (int64_t i = 0; i < sizes.nodes; ++i) {
      const int64_t at = b * sizes.nodes + i;
      Receiver<T> receiver{{}, values_of<T>(messages) + at * node};
      for (int64_t j = 0; j < sizes.nodes; ++j) {
        if (j == i) continue;
        const bool straight = forwards(i, j, transpose);
        const int64_t sender = b * sizes.nodes + j;
        receiver.senders.push_back({(straight ? wide_p : wide_q).data() + at * factor,
                                    (straight ? wide_q : wide_p).data() + sender * factor,
                                    values_of<T>(g) + sender * node,
                                    lse + (at * sizes.nodes + j) * sizes.positions});
      }
      receivers.push_back(receiver);
    }
  attend(sizes, receivers);
}

std::tuple<Tensor, Tensor> co_attention(const Tensor& p, const Tensor& q, const Tensor& g, bool transpose) {
  const GroupSizes sizes = check(p, q, g);
  Tensor messages = torch::stable::empty_like(g);
  Tensor row_lse = torch::stable::new_zeros(g, {sizes.groups, sizes.nodes, sizes.nodes, sizes.positions},
                                            ScalarType::Float);
  (is_bfloat16(g) ? run<BFloat16> : run<float>)(sizes, p, q, g, transpose, messages, row_lse);
  return {messages, row_lse};
}

// Sums in float32 of the gradients of a factor by its role: an edge's left, and another one's right, may be the same.
struct FactorGradients {
  Buffer<float> left, right;

  FactorGradients(int64_t count, bool is_left, bool is_right)
      : left(is_left ? count : 0), right(is_right ? count : 0) {
    if (left.size() > 0) std::memset(left.data(), 0, left.bytes());
    if (right.size() > 0) std::memset(right.data(), 0, right.bytes());
  }

  template <class T>
  void give(int64_t count, T* to) const {
    left.size() > 0 && right.size() > 0 ? narrow(left.data(), right.data(), count, to)
                                        : narrow<T>(nullptr, (left.size() > 0 ? left : right).data(), count, to);
  }
};

template <class T>
void run_backward(const GroupSizes& sizes, const Tensor& grad, const Tensor& p, const Tensor& q, const Tensor& g,
                  const Tensor& row_lse, bool transpose, Tensor (&grads)[3]) {
  const Widened<T> wide_p(values_of<T>(p), sizes.factors()), wide_q(values_of<T>(q), sizes.factors());
  FactorGradients of_p(sizes.factors(), true, transpose), of_q(sizes.factors(), transpose, true);
  FloatSums<T> of_g(grads[2], sizes.values());
  const int64_t factor = sizes.positions * sizes.rank, node = sizes.positions * sizes.channels;
  // In one round every node receives once and sends once: no two of its edges share a sum.
  std::vector<std::vector<EdgeGradient<T>>> rounds(sizes.nodes > 0 ? sizes.nodes - 1 : 0);
  for (size_t round = 0; round < rounds.size(); ++round)
    for (int64_t b = 0; b < sizes.groups; ++b)
      for (int64_t i = 0; i < sizes.nodes; ++i) {
        const int64_t j = (i + 1 + round) % sizes.nodes, at = b * sizes.nodes + i, sender = b * sizes.nodes + j;
        const bool straight = forwards(i, j, transpose);
        FactorGradients &left = straight ? of_p : of_q, &right = straight ? of_q : of_p;
        rounds[round].push_back({(straight ? wide_p : wide_q).data() + at * factor,
                                 (straight ? wide_q : wide_p).data() + sender * factor,
                                 values_of<T>(straight ? p : q) + at * factor,
                                 values_of<T>(straight ? q : p) + sender * factor,
                                 values_of<T>(g) + sender * node,
                                 values_of<T>(grad) + at * node,
                                 row_lse.const_data_ptr<float>() + (at * sizes.nodes + j) * sizes.positions,
                                 left.left.data() + at * factor,
                                 right.right.data() + sender * factor,
                                 of_g.data() + sender * node});
      }
  attend_backward(sizes, rounds);
  of_p.give(sizes.factors(), values_of<T>(grads[0]));
  of_q.give(sizes.factors(), values_of<T>(grads[1]));
  of_g.give(values_of<T>(grads[2]));
}

std::tuple<Tensor, Tensor, Tensor> co_attention_backward(const Tensor& grad, const Tensor& p, const Tensor& q,
                                                         const Tensor& g, const Tensor& row_lse, bool transpose) {
  const GroupSizes sizes = check(p, q, g);
  check_like("co_attention_backward", "grad", grad, "g", g);
  check_layout("co_attention_backward", "row_lse", row_lse, 4, ScalarType::Float);
  STD_TORCH_CHECK(row_lse.size(0) == sizes.groups && row_lse.size(1) == sizes.nodes &&
                      row_lse.size(2) == sizes.nodes && row_lse.size(3) == sizes.positions,
                  "co_attention_backward: row_lse must be (B, K, K, N)");
  using torch::stable::empty_like;
  Tensor grads[] = {empty_like(p), empty_like(q), empty_like(g)};
  (is_bfloat16(g) ? run_backward<BFloat16> : run_backward<float>)(sizes, grad, p, q, g, row_lse, transpose, grads);
  return {grads[0], grads[1], grads[2]};
}

}  // namespace
}  // namespace gwsss_fast

STABLE_TORCH_LIBRARY_IMPL(gwsss_fast_native, CPU, library) {
  library.impl("co_attention", TORCH_BOX(&gwsss_fast::co_attention));
  library.impl("co_attention_backward", TORCH_BOX(&gwsss_fast::co_attention_backward));
}
