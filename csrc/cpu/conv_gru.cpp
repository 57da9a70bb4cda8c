// What lies between the products of a ConvGRU (Eq. 2), on channels-last rows.

#include <torch/csrc/stable/library.h>

#include "kernels.h"
#include "parallel.h"
#include "tensors.h"

namespace gwsss_fast {
namespace {

constexpr int64_t kLeastValues = int64_t{1} << 14;  // that a thread takes at least

// One operator's call: its state gives the shape and the type that the others must have.
class Call {
 public:
  Call(const char* operation, const char* name, const Tensor& tensor, int64_t parts = 1) : operation_(operation) {
    const Argument argument{operation, name, tensor};
    require_values(argument);
    require(tensor.dim() == 2 && tensor.size(1) % parts == 0, argument, "be a matrix (R, C)");
    type_ = tensor.scalar_type();
    rows_ = tensor.size(0);
    channels_ = tensor.size(1) / parts;
  }

  Rows rows(const char* name, const Tensor& tensor, int64_t parts = 1) const {
    return rows_of({operation_, name, tensor}, rows_, parts * channels_, type_);
  }

  GruShape shape() const { return {type_ == ScalarType::BFloat16, channels_}; }

  template <class Pass>
  void run(void (*kernel)(const Pass&, int64_t, int64_t), const Pass& pass) const {
    if (channels_ == 0) return;
    parallel_for(rows_, std::max<int64_t>(1, kLeastValues / channels_),
                 [&](int64_t begin, int64_t end) { kernel(pass, begin, end); });
  }

 private:
  const char* operation_;
  ScalarType type_;
  int64_t rows_, channels_;
};

void gates(const Tensor& opened, const Tensor& h, const Tensor& z, const Tensor& r, const Tensor& reset) {
  const Call call("conv_gru_gates", "h", h);
  call.run(kernels().gru_gates, {call.shape(), call.rows("opened", opened, 2), call.rows("h", h), call.rows("z", z),
                                 call.rows("r", r), call.rows("reset", reset)});
}

void blend(const Tensor& c, const Tensor& h, const Tensor& z, const Tensor& out) {
  const Call call("conv_gru_blend", "h", h);
  call.run(kernels().gru_blend,
           {call.shape(), call.rows("c", c), call.rows("h", h), call.rows("z", z), call.rows("out", out)});
}

void slopes(const Tensor& grad, const Tensor& h, const Tensor& z, const Tensor& c, const Tensor& slope_z,
            const Tensor& slope_c) {
  const Call call("conv_gru_slopes", "h", h);
  call.run(kernels().gru_slopes,
           {call.shape(), call.rows("grad", grad), call.rows("h", h), call.rows("z", z), call.rows("c", c),
            call.rows("slope_z", slope_z), call.rows("slope_c", slope_c)});
}

void reset_gradient(const Tensor& grad_reset, const Tensor& h, const Tensor& r, const Tensor& slope_r,
                    const Tensor& reset) {
  const Call call("conv_gru_reset", "h", h);
  call.run(kernels().gru_reset, {call.shape(), call.rows("grad_reset", grad_reset), call.rows("h", h),
                                 call.rows("r", r), call.rows("slope_r", slope_r), call.rows("reset", reset)});
}

void join(const Tensor& grad, const Tensor& back, const Tensor& from_gates, const Tensor& z, const Tensor& r,
          const Tensor& grad_m, const Tensor& grad_h) {
  const Call call("conv_gru_join", "grad", grad);
  call.run(kernels().gru_join,
           {call.shape(), call.rows("grad", grad), call.rows("back", back, 2), call.rows("from_gates", from_gates, 2),
            call.rows("z", z), call.rows("r", r), call.rows("grad_m", grad_m), call.rows("grad_h", grad_h)});
}

}  // namespace
}  // namespace gwsss_fast

STABLE_TORCH_LIBRARY_IMPL(gwsss_fast_native, CPU, library) {
  library.impl("conv_gru_gates", TORCH_BOX(&gwsss_fast::gates));
  library.impl("conv_gru_blend", TORCH_BOX(&gwsss_fast::blend));
  library.impl("conv_gru_slopes", TORCH_BOX(&gwsss_fast::slopes));
  library.impl("conv_gru_reset", TORCH_BOX(&gwsss_fast::reset_gradient));
  library.impl("conv_gru_join", TORCH_BOX(&gwsss_fast::join));
}
