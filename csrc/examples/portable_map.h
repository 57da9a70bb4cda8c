// Images and masks as portable pixmaps (binary P6 and P5), which any image tool reads and writes.
#pragma once

#include <cstdint>
#include <fstream>
#include <stdexcept>
#include <string>
#include <vector>

struct Picture {
  int64_t height = 0, width = 0;
  std::vector<float> planes;  // red, green, blue, each height x width, 0..255
};

inline int64_t read_number(std::istream& file, const std::string& path) {
  while (file >> std::ws && file.peek() == '#') {
    std::string comment;
    std::getline(file, comment);
  }
  int64_t value = 0;
  if (!(file >> value) || value < 1 || value > 65535) throw std::runtime_error(path + " is no portable pixmap (P6)");
  return value;
}

inline Picture read_picture(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error("cannot read " + path);
  std::string magic;
  file >> magic;
  if (magic != "P6") throw std::runtime_error(path + " is no portable pixmap (P6)");
  Picture picture;
  picture.width = read_number(file, path);
  picture.height = read_number(file, path);
  if (read_number(file, path) != 255) throw std::runtime_error(path + ": only 8 bits a channel are read");
  file.get();  // one white space, then the pixels
  const int64_t pixels = picture.height * picture.width;
  std::vector<uint8_t> bytes(3 * pixels);
  if (!file.read(reinterpret_cast<char*>(bytes.data()), static_cast<std::streamsize>(bytes.size())))
    throw std::runtime_error(path + " ends too early");
  picture.planes.resize(3 * pixels);
  for (int64_t i = 0; i < pixels; ++i)
    for (int64_t c = 0; c < 3; ++c) picture.planes[c * pixels + i] = bytes[3 * i + c];
  return picture;
}

inline void write_mask(const std::string& path, const int64_t* labels, int64_t height, int64_t width) {
  std::ofstream file(path, std::ios::binary);
  file << "P5\n" << width << " " << height << "\n255\n";
  for (int64_t i = 0; i < height * width; ++i) file.put(static_cast<char>(labels[i]));
  if (!file.flush()) throw std::runtime_error("cannot write " + path);
}
