#include "product.h"

#include <algorithm>
#include <cstring>

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>
#include <torch/headeronly/util/shim_utils.h>

#include "kernels.h"
#include "parallel.h"

// From PyTorch's c/shim_cpu.h, which cannot be included here. Absent where PyTorch was built without oneDNN.
extern "C" {
__attribute__((weak)) AOTITorchError aoti_torch_cpu__linear_pointwise(
    AtenTensorHandle x, AtenTensorHandle weight, AtenTensorHandle* bias, const char* attribute,
    const double** scalars, int64_t scalars_size, const char** algorithm, AtenTensorHandle* result);
__attribute__((weak)) AOTITorchError aoti_torch_cpu__linear_pointwise_binary(
    AtenTensorHandle x, AtenTensorHandle other, AtenTensorHandle weight, AtenTensorHandle* bias,
    const char* attribute, AtenTensorHandle* result);
}

namespace gwsss_fast {
namespace {

constexpr int64_t kCopyGrain = 1 << 18;     // bytes that a thread copies at least
constexpr int64_t kLeastProduct = 1 << 19;  // multiplications for which oneDNN is asked

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

// MKL takes AVX2 on processors of other makers than Intel; oneDNN takes AVX-512, and is twice as fast then. It gives
// its results in new memory.
bool has_faster_onednn() {
#if defined(GWSSS_X86)
  static const bool faster = !__builtin_cpu_is("intel") && std::strcmp(kernels().name, "avx512") == 0 &&
      &aoti_torch_cpu__linear_pointwise != nullptr && &aoti_torch_cpu__linear_pointwise_binary != nullptr;
  return faster;
#else
  return false;
#endif
}

// A call of it costs some microseconds.
bool onednn_is_faster(const Matrix& a, const Matrix& b) {
  return !a.is_bfloat16 && a.rows * a.columns * b.columns >= kLeastProduct && has_faster_onednn();
}

// a b, or sum + a b: a new tensor.
AtenTensorHandle onednn_product(const Matrix& a, const Matrix& b, const Matrix* sum) {
  const View left(a), right(b.transposed());
  AtenTensorHandle result = nullptr;
  if (sum != nullptr) {
    const View other(*sum);
    TORCH_ERROR_CODE_CHECK(aoti_torch_cpu__linear_pointwise_binary(left.get(), other.get(), right.get(), nullptr,
                                                                   "add", &result));
  } else {
    TORCH_ERROR_CODE_CHECK(aoti_torch_cpu__linear_pointwise(left.get(), right.get(), nullptr, "none", nullptr, 0,
                                                            nullptr, &result));
  }
  return result;
}

void* values_of(AtenTensorHandle tensor) {
  void* data = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_data_ptr(tensor, &data));
  return data;
}

}  // namespace

void multiply(const Matrix& a, const Matrix& b, const Matrix& out, bool add) {
  if (onednn_is_faster(a, b)) {
    const AtenTensorHandle result = onednn_product(a, b, add ? &out : nullptr);
    const char* from = static_cast<const char*>(values_of(result));
    const int64_t row_bytes = out.columns * out.value_bytes();
    parallel_for(out.rows, std::max<int64_t>(1, kCopyGrain / row_bytes), [&](int64_t begin, int64_t end) {
      std::memcpy(static_cast<char*>(out.data) + begin * row_bytes, from + begin * row_bytes,
                  (end - begin) * row_bytes);
    });
    aoti_torch_delete_tensor_object(result);
    return;
  }
  const View left(a), right(b), result(out);
  if (add) {
    TORCH_ERROR_CODE_CHECK(
        aoti_torch_cpu_addmm_out(result.get(), result.get(), left.get(), right.get(), 1.0, 1.0));
  } else {
    TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_mm_out(result.get(), left.get(), right.get()));
  }
}

Product::Product(const Matrix& a, const Matrix& b) {
  if (onednn_is_faster(a, b)) {
    tensor_ = onednn_product(a, b, nullptr);
    data_ = values_of(tensor_);
  } else {
    buffer_ = Buffer<char>(a.rows * b.columns * a.value_bytes());
    data_ = buffer_.data();
    multiply(a, b, {data_, a.is_bfloat16, a.rows, b.columns, b.columns, 1});
  }
}

Product::~Product() {
  if (tensor_ != nullptr) aoti_torch_delete_tensor_object(tensor_);
}

}  // namespace gwsss_fast
