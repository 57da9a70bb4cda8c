// A table from codes of lattice points to numbers.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <utility>

#include "buffer.h"

namespace gwsss_fast {

// From codes of lattice points to numbers in the order of their first insertion. A bucket is a line of the cache and
// looked through without branches, as which entry it is, and whether it is there, cannot be predicted; a full one is
// continued in the next.
class CodeTable {
 public:
  CodeTable() = default;  // of nothing

  explicit CodeTable(size_t expected) {
    size_t buckets = 2;
    while (kLoad * buckets < expected) buckets *= 2;
    resize(buckets);
  }

  // The number of `code`, a new one if it is not there.
  int32_t insert(uint64_t code) {
    if (count_ >= kLoad * buckets_.size()) grow();
    int32_t found;
    Bucket& bucket = buckets_[look_up(code, &found)];
    codes_[count_] = code;
    count_ += found == 0;
    return found != 0 ? found - 1 : bucket.add(code, static_cast<int32_t>(count_));
  }

  // The number of `code`, or -1. Not of a table of nothing.
  int32_t find(uint64_t code) const {
    int32_t found;
    look_up(code, &found);
    return found - 1;
  }

  void prefetch(uint64_t code) const { __builtin_prefetch(&buckets_[slot(code)]); }
  size_t size() const { return count_; }
  const uint64_t* codes() const { return codes_.data(); }  // by number

 private:
  static constexpr int32_t kEntries = 5;
  static constexpr size_t kLoad = 2;  // entries a bucket on average, at most

  struct alignas(64) Bucket {
    uint64_t code[kEntries];
    int32_t number[kEntries];  // + 1; 0 where there is none
    int32_t count;

    // 0 if it is not there.
    int32_t find(uint64_t wanted) const {
      int32_t found = 0;
      for (int i = 0; i < kEntries; ++i) found |= number[i] & -static_cast<int32_t>(code[i] == wanted);
      return found;
    }

    int32_t add(uint64_t added, int32_t next) {
      code[count] = added;
      number[count++] = next;
      return next - 1;
    }
  };

  size_t slot(uint64_t code) const { return (code * 0x9E3779B97F4A7C15ull) >> shift_; }

  // The bucket that `code` is in, or belongs into if `found`, its number + 1, is 0.
  size_t look_up(uint64_t code, int32_t* found) const {
    size_t at = slot(code);
    *found = buckets_[at].find(code);
    while (__builtin_expect((*found == 0) & (buckets_[at].count == kEntries), 0)) {
      at = (at + 1) & (buckets_.size() - 1);
      *found = buckets_[at].find(code);
    }
    return at;
  }

  void resize(size_t buckets) {
    buckets_ = Buffer<Bucket>(buckets);
    std::memset(static_cast<void*>(buckets_.data()), 0, buckets_.bytes());
    Buffer<uint64_t> codes(kLoad * buckets + 1);  // no more are inserted before it grows
    if (count_ > 0) std::memcpy(codes.data(), codes_.data(), count_ * sizeof(uint64_t));
    codes_ = std::move(codes);
    shift_ = 64;
    for (; buckets > 1; buckets /= 2) --shift_;
  }

  void grow() {
    resize(2 * buckets_.size());
    for (size_t i = 0; i < count_; ++i) {
      int32_t found;
      buckets_[look_up(codes_[i], &found)].add(codes_[i], static_cast<int32_t>(i) + 1);
    }
  }

  Buffer<Bucket> buckets_;
  Buffer<uint64_t> codes_;
  size_t count_ = 0;
  int shift_ = 0;
};

}  // namespace gwsss_fast
