// Loops that are compiled once for every instruction set and chosen at run time. Plain pointers only: a function that
// two of these object files shared could be linked in the form that this processor does not understand.
#pragma once

#include <cstdint>

#include "product.h"

namespace gwsss_fast {

constexpr int kMaxDimensions = 5;
constexpr int kAhead = 20;  // pixels by which rows are fetched before they are needed
constexpr int32_t kFirst = INT32_MIN;
constexpr int kTile = 16;  // pixels whose labels are transposed together

// Features of a pixel: (x, y) / sxy, and with 5 dimensions also (r, g, b) / srgb.
struct Features {
  int dimensions;
  float sxy;
  float srgb;
  const uint8_t* image;  // (height, width, 3)
  int64_t height;
  int64_t width;
  const int32_t* order;  // the pixel at each place, see Order
};

// How lattice points become one integer: sum of coordinate * stride. A step along a direction is then one addition.
struct Coding {
  float scale[kMaxDimensions];  // of each feature, so that the blur has unit width
  uint64_t stride[kMaxDimensions];
  int64_t lowest[kMaxDimensions];     // no coordinate is less
  uint64_t step[kMaxDimensions + 1];  // along each direction
};

// Rows of a lattice hold one value a label. They lie in planes of kPlane labels, the last as narrow as may be: as many
// as fit into vector registers, and a filter that takes them one after another touches fewer bytes at a time.
constexpr int kPlane = 32;

// Values a row: labels rounded up to a multiple of 8 (the rest is zero).
inline int64_t row_pitch(int64_t labels) { return (labels + 7) / 8 * 8; }
inline int64_t planes(int64_t pitch) { return (pitch + kPlane - 1) / kPlane; }
inline int64_t plane_width(int64_t pitch, int64_t plane) {
  const int64_t left = pitch - plane * kPlane;
  return left < kPlane ? left : kPlane;
}

// What a pass over pixels needs of a lattice, and the rows that it reads and adds to.
struct Edges {
  int size;                     // corners of a simplex
  int64_t vertices;             // rows of `vertex`
  int64_t strip_rows;           // rows of `strip_row`
  const int32_t* corner;        // (pixels + kAhead, size) vertices
  const int32_t* strip_corner;  // (pixels, size) rows of the strip
  const float* weight;          // (pixels, size)
  const float* vertex;          // filtered rows to read, plane by plane, or null
  float* strip_row;             // rows to add to, plane by plane, or null
};

// One pass over pixels: take messages from the lattices, update the pixel, add it to the lattices again.
struct PixelPass {
  int64_t labels;
  int64_t pitch;  // row_pitch(labels)
  int64_t pixels;
  const int32_t* order;  // the pixel at each place: rows and corners are by place, input and output by pixel
  int kernels;
  Edges edges[2];
  const float* input;  // (labels, pixels): probabilities in the first pass forward, gradients in that backward, or null
  float* output;       // (labels, pixels): marginals in the last pass forward, gradients in that backward, or null
  float* unary;           // (pixels, pitch): logarithm of the probabilities; backward its gradient
  const float* marginal;  // (pixels, pitch): read backward
  float* row;             // (pixels, pitch): marginals or, backward, the scores' gradients are written to it, or null

  bool reads() const { return kernels > 0 && edges[0].vertex != nullptr; }
};

// The filter of one plane. Vertices are sorted by level, one of their coordinates, which a step along a direction
// changes by a few. So the blurs follow each other through the levels, each a few behind the last, and what they pass
// on stays in the cache: two rings of `slots` levels, `slot_rows` + 1 rows each. Only the last blur writes vertices.
struct Sweep {
  int size;                       // directions
  int order[kMaxDimensions + 1];  // the direction of each blur in turn
  int climb[kMaxDimensions + 1];  // levels by which the vertex after another one is higher, of each blur in turn
  int64_t levels;
  const int32_t* level;         // first vertex of each level, and the end
  const int32_t* neighbour;     // (size, vertices, 2) before and after along each direction, counted in their level
  const int32_t* source_start;  // where each level's vertices begin in `source`, and the end
  const int32_t* source;        // rows whose sum is a vertex before the blur, + kFirst where the next vertex begins
  const float* source_weight;   // what each is multiplied by, or null
  const float* row;             // this plane of the rows: of strips or of pixels
  int64_t row_pitch;
  float scale;                  // what the sum is multiplied by
  float* vertex;                // this plane of the vertices: the result
  bool streamed;                // past the caches, which it does not fit
  int64_t width;                // of this plane
  int64_t slots;
  int64_t slot_rows;  // of the largest level; as a neighbour, none

  int64_t reach(int blur) const { return climb[blur] < 0 ? -climb[blur] : climb[blur]; }
};

// Softmaxes of rows of scores, which are overwritten.
struct SoftmaxRows {
  float* scores;  // (rows, columns)
  int64_t columns;
  void* weights;  // float32 or bfloat16
  int64_t weight_stride;
  bool is_bfloat16;  // of the weights
  float* row_lse;    // logarithm of each row's sum of exponentials
};

// Gradients of those scores: weights ~ exp(score - lse), their sum 1; gradient = weights * (slope - sum of weights *
// slopes). All are (rows, columns) without gaps; scores are overwritten.
struct SoftmaxGradientRows {
  float* scores;
  int64_t columns;
  const void* slopes;  // gradients of the weights; they, weights and gradient have one type
  bool is_bfloat16;
  const float* row_lse;
  void* weights;   // may be `scores`
  void* gradient;  // may be `slopes`
};

// A matrix of float or BFloat16 whose lines are contiguous; `stride` values from line to line.
struct Rows {
  void* data;
  int64_t stride;
};

// Graph dropout of contiguous nodes, rows of `channels` values: out = g s forward; backward, where `grad` is not null,
// out = grad s + slope / channels * sum over channels of grad g.
struct DropoutPass {
  bool is_bfloat16;  // g, grad and out
  bool past_caches;  // write out to memory, not to the caches
  int64_t channels;
  const void* g;
  const void* grad;
  void* out;
  float* o;            // (rows) channel means
  const float* s;      // (rows) the map
  const float* slope;  // (rows) its derivative by o
};

// What follows the products of a ConvGRU, on (rows, channels).
struct GruShape {
  bool is_bfloat16;
  int64_t channels;
};

// z, r = sigmoid(opened), which holds both side by side, and may be them; reset = r h.
struct GruGates {
  GruShape shape;
  Rows opened, h, z, r, reset;
};

// c = tanh(c) in place; out = (1 - z) h + z c. out may be c, which it then replaces.
struct GruBlend {
  GruShape shape;
  Rows c, h, z, out;
};

// Gradients before the sigmoid of z and the tanh of c.
struct GruSlopes {
  GruShape shape;
  Rows grad, h, z, c, slope_z, slope_c;
};

// The gradient before the sigmoid of r from that of r h; reset = r h.
struct GruReset {
  GruShape shape;
  Rows grad_reset, h, r, slope_r, reset;
};

// grad_m = the left halves of back and from_gates; grad_h = grad (1 - z) + r times the right half of back + that of
// from_gates.
struct GruJoin {
  GruShape shape;
  Rows grad, back, from_gates, z, r, grad_m, grad_h;
};

// Values a line of vectors of any width: the rest after the last value is zero.
constexpr int64_t kLine = 16;
inline int64_t line_pitch(int64_t size) { return (size + kLine - 1) / kLine * kLine; }

// Edge readout, softmax over positions. Scores of edge (i, j) are grams[i] + grams[j]. A pair is i <= j.
struct EdgePositions {
  int64_t nodes;
  int64_t positions;
  float* grams;         // (nodes, positions, positions); replaced by its gradient where `toward` is given
  const float* toward;  // (pairs, pitch) gradient of the column means, or null
};

// Edge readout, softmax over channels. Scores of edge (i, j) in the rows of node i: blocks i and j of `scores`.
struct EdgeChannels {
  int64_t nodes;
  int64_t channels;
  float* scores;      // (nodes channels, nodes channels); replaced by its gradient backward
  const float* mean;  // (nodes, pitch) over positions
  float* out;         // (nodes, nodes, channels) forward: half of edge (i, j) that belongs to i
  const float* grad;  // the same shape, backward
};

// A square matrix to be made symmetric: what is above the diagonal also below it, or the sum of both.
constexpr int kMirror = 16;
struct Mirror {
  float* matrix;
  int64_t size;
  bool add;
};

// Winograd's convolution: images (count, height, width, channels) and 16 planes (tiles, channels), a tile for every 2 x 2
// pixels.
struct Winograd {
  int64_t height, width, channels;
  float* images;
  float* plane[16];
  const float* bias;  // (channels), added to the output, or null
};

// Its weights, 3 x 3 values together, and 16 planes (lines, lanes).
struct WinogradWeight {
  float* weight;
  float* plane[16];
  int64_t lanes;
  int64_t line_stride, lane_stride;  // in `weight`
  bool rotated;                      // by half a turn
};

struct Kernels {
  const char* name;
  // Of the pixels at places [begin, end): code of the simplex's first corner, rank of each coordinate (3 bits each) and
  // barycentric weights (pixel, corner).
  void (*locate)(const Features&, const Coding&, int64_t begin, int64_t end, uint64_t*, uint32_t*, float*);
  // Sums, blurs and writes one plane of the vertices of levels [begin, end), see `Sweep`.
  void (*sweep)(const Sweep&, int64_t begin, int64_t end, float* ring);
  // Places [begin, end): softmax(unary + messages). scratch: (2, kTile, pitch). Returns whether the input holds NaN.
  bool (*forward)(const PixelPass&, int64_t begin, int64_t end, float* scratch);
  // Places [begin, end): gradient of the scores from that of the marginals.
  void (*backward)(const PixelPass&, int64_t begin, int64_t end, float* scratch);
  // Rows [begin, end).
  void (*softmax)(const SoftmaxRows&, int64_t begin, int64_t end);
  void (*softmax_gradient)(const SoftmaxGradientRows&, int64_t begin, int64_t end);
  // to = from, to += from, to = a + factor * b and to = a + b for `count` values. `a` may be null: nothing.
  void (*widen)(const BFloat16* from, int64_t count, float* to);
  void (*accumulate)(const BFloat16* from, int64_t count, float* to);
  void (*sum_float)(const float* a, float factor, const float* b, int64_t count, float* to);
  void (*sum_bfloat16)(const BFloat16* a, float factor, const BFloat16* b, int64_t count, BFloat16* to);
  void (*narrow_sum)(const float* a, const float* b, int64_t count, BFloat16* to);
  // Rows [begin, end): channel means o; products with the map s.
  void (*dropout_means)(const DropoutPass&, int64_t begin, int64_t end);
  void (*dropout_scale)(const DropoutPass&, int64_t begin, int64_t end);
  // Rows [begin, end).
  void (*gru_gates)(const GruGates&, int64_t begin, int64_t end);
  void (*gru_blend)(const GruBlend&, int64_t begin, int64_t end);
  void (*gru_slopes)(const GruSlopes&, int64_t begin, int64_t end);
  void (*gru_reset)(const GruReset&, int64_t begin, int64_t end);
  void (*gru_join)(const GruJoin&, int64_t begin, int64_t end);
  // Rows [begin, end) of every matrix. Adds to weights (pairs, pitch) the column means' parts of these rows.
  // scratch: (1 + nodes, pitch).
  void (*edge_positions)(const EdgePositions&, int64_t begin, int64_t end, float* scratch, float* weights);
  // Rows [begin, end) of the scores. scratch: (nodes, pitch + 6). Backward adds to grad_mean (nodes, pitch).
  void (*edge_channels)(const EdgeChannels&, int64_t begin, int64_t end, float* scratch);
  void (*edge_channels_backward)(const EdgeChannels&, int64_t begin, int64_t end, float* scratch, float* grad_mean);
  // Tiles of kMirror rows [begin, end), with all that lies opposite of them.
  void (*mirror)(const Mirror&, int64_t begin, int64_t end);
  // Tiles [begin, end): planes from pixels, pixels from planes, and its gradient.
  void (*winograd_input)(const Winograd&, int64_t begin, int64_t end);
  void (*winograd_output)(const Winograd&, int64_t begin, int64_t end);
  void (*winograd_output_gradient)(const Winograd&, int64_t begin, int64_t end);
  // Lanes [begin, end) of a line: planes from weights, and its gradient.
  void (*winograd_weight)(const WinogradWeight&, int64_t line, int64_t begin, int64_t end);
  void (*winograd_weight_gradient)(const WinogradWeight&, int64_t line, int64_t begin, int64_t end);
};

// The widest instruction set that this processor has; GWSSS_CPU=baseline, avx2 or avx512 asks for a narrower one, any
// other value but an empty one is told on the standard error and has no effect.
const Kernels& kernels();

}  // namespace gwsss_fast
