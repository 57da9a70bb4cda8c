// A mask of one image from an engine of TensorRT or TensorRT-RTX (one interface, another library and headers):
//
//   python -m gwsss_fast.export_model RUN/segmenter/last.pt --format tensorrt --normalise --argmax --output model.engine
//   segment_engine model.engine image.ppm mask.pgm
//
// Not yet run on a GPU.

#include <cstdio>
#include <exception>
#include <fstream>
#include <iterator>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include <NvInfer.h>
#include <cuda_runtime_api.h>

#include "portable_map.h"

namespace {

class Logger : public nvinfer1::ILogger {
  void log(Severity severity, const char* message) noexcept override {
    if (severity <= Severity::kERROR) std::fprintf(stderr, "%s\n", message);
  }
};

void check(bool good, const std::string& problem) {
  if (!good) throw std::runtime_error(problem);
}

void check(cudaError_t status, const char* what) {
  check(status == cudaSuccess, std::string(what) + ": " + cudaGetErrorString(status));
}

class DeviceMemory {
 public:
  explicit DeviceMemory(size_t bytes) { check(cudaMalloc(&address_, bytes), "no memory on the GPU"); }
  ~DeviceMemory() { cudaFree(address_); }
  DeviceMemory(const DeviceMemory&) = delete;
  DeviceMemory& operator=(const DeviceMemory&) = delete;
  void* get() const { return address_; }

 private:
  void* address_ = nullptr;
};

std::vector<char> read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  check(static_cast<bool>(file), "cannot read " + path);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

void segment(const std::string& model, const std::string& image, const std::string& mask) {
  int devices = 0;
  check(cudaGetDeviceCount(&devices) == cudaSuccess && devices > 0, "an engine needs an NVIDIA GPU and driver");
  Logger logger;
  const std::vector<char> plan = read_file(model);
  const std::unique_ptr<nvinfer1::IRuntime> runtime(nvinfer1::createInferRuntime(logger));
  check(runtime != nullptr, "the library does not start");
  const std::unique_ptr<nvinfer1::ICudaEngine> engine(runtime->deserializeCudaEngine(plan.data(), plan.size()));
  check(engine != nullptr, model + " cannot be read by this library on this GPU; build it again here");
  const std::string name = engine->getName();
  check(name.find("\"normalise\": false") == std::string::npos && name.find("\"argmax\": false") == std::string::npos,
        model + " must be exported with --normalise --argmax");
  const std::unique_ptr<nvinfer1::IExecutionContext> context(engine->createExecutionContext());
  check(context != nullptr, "no memory to run the engine");

  const Picture picture = read_picture(image);
  const size_t input_bytes = picture.planes.size() * sizeof(float);
  std::vector<int64_t> labels(picture.height * picture.width);
  const size_t output_bytes = labels.size() * sizeof(int64_t);
  const DeviceMemory input(input_bytes), output(output_bytes);
  check(context->setInputShape("images", nvinfer1::Dims4{1, 3, picture.height, picture.width}),
        "the engine was built for images of other sizes");
  check(engine->getTensorDataType("labels") == nvinfer1::DataType::kINT64, model + " gives no labels");
  check(context->setTensorAddress("images", input.get()) && context->setTensorAddress("labels", output.get()),
        "the engine has other inputs and outputs");
  cudaStream_t stream = nullptr;
  check(cudaStreamCreate(&stream), "no stream");
  check(cudaMemcpyAsync(input.get(), picture.planes.data(), input_bytes, cudaMemcpyHostToDevice, stream), "copy");
  check(context->enqueueV3(stream), "the engine fails");
  check(cudaMemcpyAsync(labels.data(), output.get(), output_bytes, cudaMemcpyDeviceToHost, stream), "copy");
  check(cudaStreamSynchronize(stream), "the engine fails");
  check(cudaStreamDestroy(stream), "stream");
  write_mask(mask, labels.data(), picture.height, picture.width);
}

}  // namespace

int main(int count, char** arguments) try {
  if (count != 4) {
    std::fprintf(stderr, "usage: %s MODEL.engine IMAGE.ppm MASK.pgm\n", arguments[0]);
    return 2;
  }
  segment(arguments[1], arguments[2], arguments[3]);
  return 0;
} catch (const std::exception& error) {
  std::fprintf(stderr, "error: %s\n", error.what());
  return 1;
}
