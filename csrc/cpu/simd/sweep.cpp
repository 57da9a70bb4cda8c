// The lattice's filter: sums of the strips' parts and all blurs in one sweep over the vertices.

#include "table.h"
#include "vectors.h"

namespace gwsss_fast::GWSSS_ISA {
namespace {

constexpr int64_t kSoon = 128;  // entries by which rows are fetched before they are needed

// Rows of the last levels. The last row of a level is zero: it stands for neighbours that do not exist, since whether
// one exists could not be predicted.
template <int W>
struct Ring {
  const Sweep& sweep;
  float* rows;

  Ring(const Sweep& of, float* memory) : sweep(of), rows(memory) {
    for (int64_t slot = 0; slot < sweep.slots; ++slot) Row<W>::zero().write(level(slot) + W * sweep.slot_rows);
  }

  float* level(int64_t number) const { return rows + W * (sweep.slot_rows + 1) * (number % sweep.slots); }
};

// Sums sources without a branch at a vertex's end, which could not be predicted: the sum so far is written each time.
template <int W>
void gather(const Sweep& sweep, int64_t level, float* to) {
  const int64_t last = sweep.source_start[sweep.levels];
  float* const end = to + W * (sweep.level[level + 1] - sweep.level[level]);
  Row<W> sum = Row<W>::zero();
  to -= W;
  for (int64_t i = sweep.source_start[level]; i < sweep.source_start[level + 1]; ++i) {
    if (i + kSoon < last) prefetch<W>(sweep.row + sweep.row_pitch * (sweep.source[i + kSoon] & ~kFirst));
    const int32_t first = sweep.source[i] >> 31;  // all bits or none
    const float weight = sweep.source_weight == nullptr ? sweep.scale : sweep.scale * sweep.source_weight[i];
    to += W & first;
    sum.keep(~first);
    sum.add(weight, sweep.row + sweep.row_pitch * (sweep.source[i] & ~kFirst));
    sum.write(to);
  }
  while ((to += W) < end) Row<W>::zero().write(to);  // vertices without a source come last
}

// The vertices of a level along the direction of blur `number`.
template <int W, bool streamed = false>
void blur(const Sweep& sweep, int number, int64_t level, const Ring<W>& from, float* to) {
  const auto beside = [&](int64_t other) { return from.level(other < 0 || other >= sweep.levels ? level : other); };
  const float* own = from.level(level);
  const float* before = beside(level - sweep.climb[number]);
  const float* after = beside(level + sweep.climb[number]);
  const int64_t first = sweep.level[level], count = sweep.level[level + 1] - first;
  const int32_t* neighbour = sweep.neighbour + 2 * (sweep.order[number] * int64_t{sweep.level[sweep.levels]} + first);
  for (int64_t i = 0; i < count; ++i, own += W, to += W, neighbour += 2) {
    const Row<W> a = Row<W>::read(before + int64_t{W} * neighbour[0]);
    const Row<W> b = Row<W>::read(after + int64_t{W} * neighbour[1]);
    Row<W> sum = Row<W>::read(own).blurred(a, b);
    if constexpr (streamed)
      sum.stream_to(to);
    else
      sum.write(to);
  }
}

template <int W>
void sweep_plane(const Sweep& sweep, int64_t begin, int64_t end, float* memory) {
  const Ring<W> rings[2] = {{sweep, memory}, {sweep, memory + W * sweep.slots * (sweep.slot_rows + 1)}};
  // Stage 0 gathers, stage s is blur s - 1. It works `lag` levels behind the gathering, and on `halo` levels more than
  // asked for on either side, which the blurs after it need.
  int64_t lag[kMaxDimensions + 2] = {}, halo[kMaxDimensions + 2] = {};
  for (int s = 1; s <= sweep.size; ++s) {
    const int64_t reach = sweep.reach(s - 1), previous = s > 1 ? sweep.reach(s - 2) : 0;
    lag[s] = lag[s - 1] + (reach > previous ? reach : previous);
  }
  for (int s = sweep.size - 1; s >= 0; --s) halo[s] = halo[s + 1] + sweep.reach(s);
  for (int64_t now = begin - halo[0]; now < end + lag[sweep.size]; ++now)
    for (int s = 0; s <= sweep.size; ++s) {
      const int64_t level = now - lag[s];
      if (level < 0 || level >= sweep.levels || level < begin - halo[s] || level >= end + halo[s]) continue;
      float* const to = s < sweep.size ? rings[s % 2].level(level) : sweep.vertex + int64_t{W} * sweep.level[level];
      if (s == 0)
        gather<W>(sweep, level, to);
      else if (s == sweep.size && sweep.streamed)
        blur<W, true>(sweep, s - 1, level, rings[(s - 1) % 2], to);
      else
        blur<W>(sweep, s - 1, level, rings[(s - 1) % 2], to);
    }
}

}  // namespace

void sweep_levels(const Sweep& sweep, int64_t begin, int64_t end, float* ring) {
  for_width(sweep.width, [&](auto width) { sweep_plane<width>(sweep, begin, end, ring); });
  if (sweep.streamed) end_stream();
}

}  // namespace gwsss_fast::GWSSS_ISA
