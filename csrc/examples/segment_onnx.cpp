// A mask of one image from an exported ONNX file, by ONNX Runtime:
//
//   python -m gwsss_fast.export_model RUN/segmenter/last.pt --output model.onnx --normalise --argmax
//   segment_onnx model.onnx image.ppm mask.pgm
//
// Normalisation and argmax are in the graph, so all that is left to do here is to hand over pixels.

#include <array>
#include <cstdio>
#include <exception>
#include <string>

#include <onnxruntime_cxx_api.h>

#include "portable_map.h"

int main(int count, char** arguments) try {
  if (count != 4) {
    std::fprintf(stderr, "usage: %s MODEL.onnx IMAGE.ppm MASK.pgm\n", arguments[0]);
    return 2;
  }
  Ort::Env environment(ORT_LOGGING_LEVEL_ERROR, "segment_onnx");
  Ort::Session session(environment, arguments[1], Ort::SessionOptions{});

  Ort::AllocatorWithDefaultOptions allocator;
  const auto text = session.GetModelMetadata().LookupCustomMetadataMapAllocated("gwsss_fast", allocator);
  const std::string metadata = text ? text.get() : "";
  for (const char* wanted : {"\"normalise\": true", "\"argmax\": true"})
    if (metadata.find(wanted) == std::string::npos)
      throw std::runtime_error(std::string(arguments[1]) + " must be exported with --normalise --argmax");

  Picture picture = read_picture(arguments[2]);
  const std::array<int64_t, 4> shape{1, 3, picture.height, picture.width};
  const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
  const auto images =
      Ort::Value::CreateTensor<float>(memory, picture.planes.data(), picture.planes.size(), shape.data(), shape.size());
  const char* const inputs[] = {"images"};
  const char* const outputs[] = {"labels"};
  auto results = session.Run(Ort::RunOptions{nullptr}, inputs, &images, 1, outputs, 1);
  write_mask(arguments[3], results[0].GetTensorData<int64_t>(), picture.height, picture.width);
  return 0;
} catch (const std::exception& error) {
  std::fprintf(stderr, "error: %s\n", error.what());
  return 1;
}
