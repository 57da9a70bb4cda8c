#pragma once

#include "cuda_runtime.h"

namespace cooperative_groups {

struct cluster_group {
  unsigned num_blocks() const { return static_cast<unsigned>(emulation::block->cluster->anchors.size()); }
  unsigned block_rank() const { return emulation::block->rank; }
  void sync() const { emulation::meet_cluster(); }
  void barrier_arrive() const {}
  void barrier_wait() const { emulation::meet_cluster(); }

  template <class T>
  T* map_shared_rank(T* address, unsigned rank) const {
    char* const own = reinterpret_cast<char*>(address);
    return reinterpret_cast<T*>(emulation::block->cluster->anchors[rank] + (own - &emulation::anchor));
  }
};

inline cluster_group this_cluster() { return {}; }

}  // namespace cooperative_groups
