// The lattice's filter: sums of the strips' parts and all blurs in one sweep over the vertices.

#include "table.h"
#include "vectors.h"

namespace gwsss_fast::GWSSS_ISA {
namespace {

constexpr int64_t kAhead = 16;  // entries by which rows are fetched before they are needed

// The row after the last is zero: it stands for vertices that do not exist.
template <int W>
struct Ring {
  float* rows;
  int64_t count;  // a power of two
  float* row(int64_t vertex) const { return rows + W * (vertex & (count - 1)); }
  // Without a branch: whether a neighbour exists cannot be predicted.
  const float* row_or_zero(int64_t vertex) const {
    const int64_t none = vertex >> 63;
    return rows + W * ((vertex & (count - 1) & ~none) | (count & none));
  }
};

template <int W>
void gather(const Sweep& sweep, int64_t begin, int64_t end, Ring<W> to) {
  const int64_t last = sweep.source_start[sweep.level[sweep.levels]];
  for (int64_t v = begin; v < end; ++v) {
    Row<W> sum = Row<W>::zero();
    for (int64_t i = sweep.source_start[v]; i < sweep.source_start[v + 1]; ++i) {
      if (i + kAhead < last) __builtin_prefetch(sweep.strip_row + int64_t{W} * sweep.source[i + kAhead]);
      sum.add(sweep.scale, sweep.strip_row + int64_t{W} * sweep.source[i]);
    }
    sum.write(to.row(v));
  }
}

// Vertices [begin, end) along one direction, from a ring to wherever `to` says.
template <int W, class To>
void blur(const Sweep& sweep, int direction, int64_t begin, int64_t end, Ring<W> from, const To& to) {
  const int32_t* neighbour = sweep.neighbour + 2 * direction * int64_t{sweep.level[sweep.levels]};
  for (int64_t v = begin; v < end; ++v) {
    const Row<W> before = Row<W>::read(from.row_or_zero(neighbour[2 * v]));
    const Row<W> after = Row<W>::read(from.row_or_zero(neighbour[2 * v + 1]));
    Row<W>::read(from.row(v)).blurred(before, after).write(to(v));
  }
}

template <int W>
void sweep_plane(const Sweep& sweep, int64_t begin, int64_t end, float* ring) {
  const Ring<W> rings[2] = {{ring, sweep.ring_rows}, {ring + W * (sweep.ring_rows + 1), sweep.ring_rows}};
  for (const Ring<W>& each : rings) Row<W>::zero().write(each.rows + W * each.count);
  // Stage 0 gathers, stage s is blur s - 1. It works `lag` levels behind the gathering, and on `halo` levels more than
  // asked for on either side, which the blurs after it need.
  int64_t lag[kMaxDimensions + 2] = {}, halo[kMaxDimensions + 2] = {};
  for (int s = 1; s <= sweep.size; ++s) {
    const int reach = sweep.reach[s - 1], previous = s > 1 ? sweep.reach[s - 2] : 0;
    lag[s] = lag[s - 1] + (reach > previous ? reach : previous);
  }
  for (int s = sweep.size - 1; s >= 0; --s) halo[s] = halo[s + 1] + sweep.reach[s];
  for (int64_t now = begin - halo[0]; now < end + lag[sweep.size]; ++now)
    for (int s = 0; s <= sweep.size; ++s) {
      const int64_t level = now - lag[s];
      if (level < 0 || level >= sweep.levels || level < begin - halo[s] || level >= end + halo[s]) continue;
      const int64_t first = sweep.level[level], last = sweep.level[level + 1];
      if (s == 0)
        gather(sweep, first, last, rings[0]);
      else if (s < sweep.size)
        blur(sweep, sweep.order[s - 1], first, last, rings[(s - 1) % 2],
             [to = rings[s % 2]](int64_t v) { return to.row(v); });
      else
        blur(sweep, sweep.order[s - 1], first, last, rings[(s - 1) % 2],
             [&](int64_t v) { return sweep.vertex + W * v; });
    }
}

}  // namespace

void sweep_levels(const Sweep& sweep, int64_t begin, int64_t end, float* ring) {
  if (sweep.width == 8)
    sweep_plane<8>(sweep, begin, end, ring);
  else
    sweep_plane<16>(sweep, begin, end, ring);
}

}  // namespace gwsss_fast::GWSSS_ISA
