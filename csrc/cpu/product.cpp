#include "product.h"

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>
#include <torch/headeronly/util/shim_utils.h>

namespace gwsss_fast {
namespace {

// A tensor over a matrix.
class View {
 public:
  explicit View(const Matrix& of) {
    const int64_t sizes[] = {of.rows, of.columns}, strides[] = {of.row_stride, of.column_stride};
    TORCH_ERROR_CODE_CHECK(aoti_torch_create_tensor_from_blob_v2(
        of.data, 2, sizes, strides, 0, of.is_bfloat16 ? aoti_torch_dtype_bfloat16() : aoti_torch_dtype_float32(),
        aoti_torch_device_type_cpu(), 0, &handle_, aoti_torch_layout_strided(), nullptr, 0));
  }
  View(const View&) = delete;
  View& operator=(const View&) = delete;
  ~View() { aoti_torch_delete_tensor_object(handle_); }

  AtenTensorHandle get() const { return handle_; }

 private:
  AtenTensorHandle handle_ = nullptr;
};

}  // namespace

void multiply(const Matrix& a, const Matrix& b, const Matrix& out, bool add) {
  const View left(a), right(b), result(out);
  if (add) {
    TORCH_ERROR_CODE_CHECK(
        aoti_torch_cpu_addmm_out(result.get(), result.get(), left.get(), right.get(), 1.0, 1.0));
  } else {
    TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_mm_out(result.get(), left.get(), right.get()));
  }
}

}  // namespace gwsss_fast
