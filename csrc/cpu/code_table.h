// A table from codes of lattice points to numbers.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <utility>

#include "buffer.h"

namespace gwsss_fast {

// Open addressing from codes of lattice points to numbers in the order of their first insertion.
class CodeTable {
 public:
  explicit CodeTable(size_t expected) {
    size_t capacity = 64;
    while (capacity < 2 * expected) capacity *= 2;
    resize(capacity);
  }

  // The number of `code`, a new one if it is not there.
  int32_t insert(uint64_t code) {
    if (2 * count_ >= entries_.size()) grow();
    size_t at = slot(code);
    while (entries_[at].number >= 0) {
      if (entries_[at].code == code) return entries_[at].number;
      at = (at + 1) & mask_;
    }
    entries_[at] = {code, static_cast<int32_t>(count_)};
    codes_[count_++] = code;
    return entries_[at].number;
  }

  // The number of `code`, or -1.
  int32_t find(uint64_t code) const {
    for (size_t at = slot(code); entries_[at].number >= 0; at = (at + 1) & mask_)
      if (entries_[at].code == code) return entries_[at].number;
    return -1;
  }

  // Replaces every number n by number[n]; nothing may be inserted after.
  void renumber(const int32_t* number) {
    for (size_t at = 0; at < entries_.size(); ++at)
      if (entries_[at].number >= 0) entries_[at].number = number[entries_[at].number];
  }

  void prefetch(uint64_t code) const { __builtin_prefetch(&entries_[slot(code)]); }
  size_t size() const { return count_; }
  const uint64_t* codes() const { return codes_.data(); }  // by number

 private:
  struct Entry {
    uint64_t code;
    int32_t number;
  };

  size_t slot(uint64_t code) const { return (code * 0x9E3779B97F4A7C15ull) >> shift_; }

  void resize(size_t capacity) {
    entries_ = Buffer<Entry>(capacity);
    std::fill_n(entries_.data(), capacity, Entry{0, -1});
    Buffer<uint64_t> codes(capacity / 2);  // no more are inserted before it grows
    std::copy_n(codes_.data(), count_, codes.data());
    codes_ = std::move(codes);
    mask_ = capacity - 1;
    shift_ = 64;
    for (; capacity > 1; capacity /= 2) --shift_;
  }

  void grow() {
    resize(2 * entries_.size());
    for (size_t i = 0; i < count_; ++i) {
      size_t at = slot(codes_[i]);
      while (entries_[at].number >= 0) at = (at + 1) & mask_;
      entries_[at] = {codes_[i], static_cast<int32_t>(i)};
    }
  }

  Buffer<Entry> entries_;
  Buffer<uint64_t> codes_;
  size_t count_ = 0;
  size_t mask_ = 0;
  int shift_ = 0;
};

}  // namespace gwsss_fast
