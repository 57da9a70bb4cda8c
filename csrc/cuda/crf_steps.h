// The steps of the dense CRF on a GPU, each for one index or one pixel: csrc/cuda/dense_crf.cpp puts them in order,
// dense_crf.cu starts them on the GPU, and on the CPU they run in a loop. No step adds to what another index adds to,
// so sums have one order and the result is the same every time.
#pragma once

#include <cmath>
#include <cstdint>

#include "simplex.h"

namespace gwsss_fast {

constexpr int64_t kPart = 64;  // entries whose sum is one thread's work; longer sums are taken in such parts

// Values of four labels, read and written at once. Rows hold labels rounded up to a multiple of four.
struct alignas(16) Four {
  float at[4];
};

GWSSS_EITHER Four add(Four sum, float factor, const Four& value) {
  GWSSS_UNROLL
  for (int i = 0; i < 4; ++i) sum.at[i] += factor * value.at[i];
  return sum;
}

// --- the lattice. An entry is a corner of a pixel's simplex: index pixel * (D + 1) + corner.

// Codes and weights of the entries of pixel i. Pixels beyond the last stand for the zeros with which the published
// code fills its last block: corners that carry nothing and pass the blur on.
template <int D>
struct Locate {
  Coding coding;
  float sxy;
  float srgb;
  const uint8_t* image;  // (pixels, 3); not read with 2 dimensions
  int64_t width;
  int64_t pixels;
  int64_t* code;  // (pixels with zeros, D + 1)
  float* weight;  // the same

  GWSSS_EITHER void operator()(int64_t i) const {
    float feature[D] = {};
    if (i < pixels) {
      int64_t x, y;
      split(i, width, y, x);
      feature[0] = static_cast<float>(x) / sxy;
      feature[1] = static_cast<float>(y) / sxy;
      GWSSS_UNROLL
      for (int c = 2; c < D; ++c) feature[c] = static_cast<float>(image[3 * i + c - 2]) / srgb;
    }
    const Simplex<D> simplex = enclosing_simplex(feature, coding);
    GWSSS_UNROLL
    for (int k = 0; k <= D; ++k) {
      code[i * (D + 1) + k] = simplex.code[k];
      weight[i * (D + 1) + k] = i < pixels ? simplex.weight[k] : 0.0f;
    }
  }
};

// Of the sorted entry i: whether a vertex begins there (times 2^32), and a part of a vertex. Running sums of these
// number vertices and parts.
struct Mark {
  const int64_t* code;  // sorted
  int64_t* mark;

  GWSSS_EITHER void operator()(int64_t i) const {
    const bool vertex = i == 0 || code[i] != code[i - 1];
    mark[i] = (static_cast<int64_t>(vertex) << 32) + (vertex || i % kPart == 0);
  }
};

// state[0] = the last running sum: the numbers of vertices and parts.
struct Count {
  const int64_t* running;
  int64_t entries;
  int64_t* state;

  GWSSS_EITHER void operator()(int64_t) const { state[0] = running[entries - 1]; }
};

// Lists what the sorted entry i tells: the vertex of a corner, the pixel and weight of the entry, where vertices and
// parts begin. The lists of beginnings end with the end.
struct Number {
  int size;
  int64_t entries;
  int64_t pixels;
  const int64_t* code;     // sorted
  const int64_t* running;  // sums of marks
  const int64_t* source;   // the entry that was sorted to place i
  const float* weight;     // by entry before sorting
  int64_t* vertex_code;    // (vertices)
  int32_t* vertex_part;    // (vertices + 1) first part of each
  int32_t* part_entry;     // (parts + 1) first sorted entry of each
  int32_t* corner;         // (pixels with zeros, size) vertices
  int32_t* entry_pixel;    // (entries) sorted
  float* entry_weight;     // (entries) sorted

  GWSSS_EITHER void operator()(int64_t i) const {
    const auto vertex = static_cast<int32_t>((running[i] >> 32) - 1);
    const auto part = static_cast<int32_t>((running[i] & 0xffffffff) - 1);
    const bool begins = i == 0 || code[i] != code[i - 1];
    if (begins) {
      vertex_code[vertex] = code[i];
      vertex_part[vertex] = part;
    }
    if (begins || i % kPart == 0) part_entry[part] = static_cast<int32_t>(i);
    if (i == entries - 1) {
      vertex_part[vertex + 1] = part + 1;
      part_entry[part + 1] = static_cast<int32_t>(entries);
    }
    int64_t pixel, k;
    split(source[i], size, pixel, k);
    corner[source[i]] = vertex;
    entry_pixel[i] = static_cast<int32_t>(pixel < pixels ? pixel : 0);  // the zeros weigh nothing
    entry_weight[i] = weight[source[i]];
  }
};

// Vertices before and after vertex v along direction j; i = j * vertices + v. -1 for none.
struct Neighbours {
  Coding coding;
  int64_t vertices;
  const int64_t* code;  // (vertices) sorted
  int32_t* neighbour;   // (directions, vertices, 2)

  GWSSS_EITHER int32_t find(int64_t wanted) const {
    int64_t low = 0, high = vertices;
    while (low < high) {
      const int64_t middle = (low + high) / 2;
      if (code[middle] < wanted)
        low = middle + 1;
      else
        high = middle;
    }
    return low < vertices && code[low] == wanted ? static_cast<int32_t>(low) : -1;
  }

  GWSSS_EITHER void operator()(int64_t i) const {
    int64_t direction, vertex;
    split(i, vertices, direction, vertex);
    const auto step = static_cast<int64_t>(coding.step[direction]);
    neighbour[2 * i] = find(code[vertex] - step);
    neighbour[2 * i + 1] = find(code[vertex] + step);
  }
};

// Multiplies the weights of pixel i by the inverse root of the row sums of the filter.
struct Normalise {
  int size;
  const int32_t* corner;
  const Four* vertex;  // one value each, filtered
  float* weight;       // (pixels, size)
  float* norm;         // (pixels)

  GWSSS_EITHER void operator()(int64_t i) const {
    float sum = 0;
    for (int k = 0; k < size; ++k) sum += weight[i * size + k] * vertex[corner[i * size + k]].at[0];
    norm[i] = 1.0f / sqrtf(sum + 1e-20f);
    for (int k = 0; k < size; ++k) weight[i * size + k] *= norm[i];
  }
};

struct NormaliseEntries {
  const int32_t* entry_pixel;
  const float* norm;
  float* entry_weight;

  GWSSS_EITHER void operator()(int64_t i) const { entry_weight[i] *= norm[entry_pixel[i]]; }
};

// --- the filter. i = row * units + unit; a unit is four labels.

// Sum of the entries of a part.
struct SumParts {
  int64_t units;
  const int32_t* part_entry;
  const int32_t* entry_pixel;
  const float* entry_weight;
  const Four* value;  // (pixels, units); null for ones
  Four* part;         // (parts, units)

  GWSSS_EITHER void operator()(int64_t i) const {
    int64_t row, unit;
    split(i, units, row, unit);
    Four sum = {};
    for (int32_t entry = part_entry[row]; entry < part_entry[row + 1]; ++entry) {
      const Four from = value != nullptr ? value[entry_pixel[entry] * units + unit] : Four{{1, 1, 1, 1}};
      sum = add(sum, entry_weight[entry], from);
    }
    part[i] = sum;
  }
};

// Sum of the parts of a vertex.
struct SumVertices {
  int64_t units;
  float scale;
  const int32_t* vertex_part;
  const Four* part;
  Four* vertex;  // (vertices, units)

  GWSSS_EITHER void operator()(int64_t i) const {
    int64_t row, unit;
    split(i, units, row, unit);
    Four sum = {};
    for (int64_t p = vertex_part[row]; p < vertex_part[row + 1]; ++p) sum = add(sum, scale, part[p * units + unit]);
    vertex[i] = sum;
  }
};

// to = from + (before + after) / 2 along one direction.
struct Blur {
  int64_t units;
  const int32_t* neighbour;  // (vertices, 2)
  const Four* from;
  Four* to;

  GWSSS_EITHER void operator()(int64_t i) const {
    int64_t row, unit;
    split(i, units, row, unit);
    const int64_t before = neighbour[2 * row], after = neighbour[2 * row + 1];
    const Four own = from[i];  // also read in place of a neighbour that there is not
    const Four one = from[(before >= 0 ? before : row) * units + unit];
    const Four other = from[(after >= 0 ? after : row) * units + unit];
    Four sum;
    GWSSS_UNROLL
    for (int k = 0; k < 4; ++k)
      sum.at[k] = own.at[k] + 0.5f * ((before >= 0 ? one.at[k] : 0.0f) + (after >= 0 ? other.at[k] : 0.0f));
    to[i] = sum;
  }
};

// --- pixels. Outside of these steps a map is (labels, pixels), inside (pixels, units).

// Logarithm of the clipped probabilities; i = unit * pixels + pixel. state[1] tells of NaN.
struct ReadUnary {
  int64_t labels;
  int64_t units;
  int64_t pixels;
  float smallest;
  const float* prob;
  Four* unary;
  int64_t* state;

  GWSSS_EITHER void operator()(int64_t i) const {
    int64_t unit, pixel;
    split(i, pixels, unit, pixel);
    Four row;
    GWSSS_UNROLL
    for (int k = 0; k < 4; ++k) {
      const int64_t label = 4 * unit + k;
      const float p = label < labels ? prob[label * pixels + pixel] : 1.0f;
      if (p != p) state[1] = 1;
      row.at[k] = label < labels ? logf(fminf(fmaxf(p, smallest), 1.0f)) : -INFINITY;  // padding is never chosen
    }
    unary[pixel * units + unit] = row;
  }
};

struct ReadMap {
  int64_t labels;
  int64_t units;
  int64_t pixels;
  const float* map;
  Four* rows;

  GWSSS_EITHER void operator()(int64_t i) const {
    int64_t unit, pixel;
    split(i, pixels, unit, pixel);
    Four row;
    GWSSS_UNROLL
    for (int k = 0; k < 4; ++k) row.at[k] = 4 * unit + k < labels ? map[(4 * unit + k) * pixels + pixel] : 0.0f;
    rows[pixel * units + unit] = row;
  }
};

// prob: for the gradient of the logarithm and the clip before it, or null.
struct WriteMap {
  int64_t labels;
  int64_t units;
  int64_t pixels;
  float smallest;
  const Four* rows;
  const float* prob;
  float* map;

  GWSSS_EITHER void operator()(int64_t i) const {
    int64_t unit, pixel;
    split(i, pixels, unit, pixel);
    const Four row = rows[pixel * units + unit];
    GWSSS_UNROLL
    for (int k = 0; k < 4; ++k) {
      if (4 * unit + k >= labels) break;
      const int64_t at = (4 * unit + k) * pixels + pixel;
      const float p = prob != nullptr ? prob[at] : 1.0f;
      map[at] = p >= smallest && p <= 1.0f ? row.at[k] / p : 0.0f;
    }
  }
};

// What pixels hear from the filtered vertices of the lattices.
struct Messages {
  int64_t units;
  int lattices;
  int size[2];
  const int32_t* corner[2];  // (pixels, size)
  const float* weight[2];    // (pixels, size)
  const Four* vertex[2];     // (vertices, units)

  GWSSS_EITHER Four add_to(Four sum, int64_t pixel, int64_t unit) const {
    GWSSS_UNROLL
    for (int l = 0; l < 2; ++l) {
      if (l >= lattices) break;
      for (int64_t k = pixel * size[l]; k < (pixel + 1) * size[l]; ++k)
        sum = add(sum, weight[l][k], vertex[l][corner[l][k] * units + unit]);
    }
    return sum;
  }
};

// marginal = softmax(unary + messages) of a pixel.
struct Update {
  Messages messages;
  const Four* unary;
  Four* marginal;

  template <class Lanes>
  GWSSS_EITHER void operator()(int64_t pixel, const Lanes& lanes) const {
    Four* const row = marginal + pixel * messages.units;
    float largest = -INFINITY;
    for (int64_t unit = lanes.lane; unit < messages.units; unit += lanes.count) {
      row[unit] = messages.add_to(unary[pixel * messages.units + unit], pixel, unit);
      GWSSS_UNROLL
      for (int k = 0; k < 4; ++k) largest = fmaxf(largest, row[unit].at[k]);
    }
    largest = lanes.largest(largest);
    float sum = 0;
    for (int64_t unit = lanes.lane; unit < messages.units; unit += lanes.count) {
      Four odds = row[unit];
      GWSSS_UNROLL
      for (int k = 0; k < 4; ++k) {
        odds.at[k] = expf(odds.at[k] - largest);
        sum += odds.at[k];
      }
      row[unit] = odds;
    }
    const float scale = 1.0f / lanes.sum(sum);
    for (int64_t unit = lanes.lane; unit < messages.units; unit += lanes.count) row[unit] = add({}, scale, row[unit]);
  }
};

// From the gradient of a pixel's marginals, `given` or heard from the lattices, to that of its scores; adds these up.
struct UpdateBackward {
  Messages messages;
  bool given;
  const Four* marginal;
  Four* gradient;  // of the marginals, if given; then of the scores
  Four* total;     // of the unary; the first to be given writes it

  template <class Lanes>
  GWSSS_EITHER void operator()(int64_t pixel, const Lanes& lanes) const {
    const int64_t first = pixel * messages.units;
    float dot = 0;
    for (int64_t unit = lanes.lane; unit < messages.units; unit += lanes.count) {
      if (!given) gradient[first + unit] = messages.add_to({}, pixel, unit);
      GWSSS_UNROLL
      for (int k = 0; k < 4; ++k) dot += marginal[first + unit].at[k] * gradient[first + unit].at[k];
    }
    dot = lanes.sum(dot);
    for (int64_t unit = lanes.lane; unit < messages.units; unit += lanes.count) {
      Four score = gradient[first + unit];
      GWSSS_UNROLL
      for (int k = 0; k < 4; ++k) score.at[k] = marginal[first + unit].at[k] * (score.at[k] - dot);
      gradient[first + unit] = score;
      total[first + unit] = given ? score : add(total[first + unit], 1, score);
    }
  }
};

// Calls `call` with the name of every step; first those of an index, then those of a pixel.
#define GWSSS_CRF_STEPS(call)                                                                                     \
  call(Locate<2>) call(Locate<5>) call(Mark) call(Count) call(Number) call(Neighbours) call(Normalise)            \
      call(NormaliseEntries) call(SumParts) call(SumVertices) call(Blur) call(ReadUnary) call(ReadMap) call(WriteMap)
#define GWSSS_CRF_PIXEL_STEPS(call) call(Update) call(UpdateBackward)

// Does a step for `count` indices or pixels on the current GPU, in the order of `stream`.
#define GWSSS_DECLARE(Step) void start(const Step& step, int64_t count, void* stream);
GWSSS_CRF_STEPS(GWSSS_DECLARE)
GWSSS_CRF_PIXEL_STEPS(GWSSS_DECLARE)
#undef GWSSS_DECLARE

}  // namespace gwsss_fast
