#include "buffer.h"

#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <map>
#include <mutex>
#include <string>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace gwsss_fast {
namespace {

constexpr size_t kAlignment = 64;
constexpr size_t kHuge = size_t{1} << 21;   // size of a huge page
constexpr size_t kLarge = size_t{1} << 16;  // smaller arrays are the allocator's business
constexpr size_t kMostKept = size_t{1} << 28;

// Freed arrays by their size, which is a power of two or one and a half of one.
struct Kept {
  std::mutex mutex;
  std::multimap<size_t, void*> free;
  size_t bytes = 0;
};

Kept& kept() {
  static Kept* const kept = new Kept();  // lives to the end: buffers of other static objects come back late
  return *kept;
}

#if defined(__SANITIZE_ADDRESS__)
constexpr bool kKeep = false;  // so that every byte beyond an array, and every use after it was freed, is seen
#else
constexpr bool kKeep = true;
#endif

size_t rounded(size_t bytes) {
  size_t power = kLarge;
  while (power < bytes) power *= 2;
  return bytes <= power / 4 * 3 ? power / 4 * 3 : power;
}

// Bytes of the last cache as Linux tells them, 32 MiB where it does not. (The C library tells the sum of all of them.)
size_t last_cache() {
  for (const char* level : {"3", "2"}) {
    std::ifstream file(std::string("/sys/devices/system/cpu/cpu0/cache/index") + level + "/size");
    size_t size = 0;
    char unit = 0;
    if (file >> size >> unit && size > 0) return unit == 'M' ? size << 20 : unit == 'K' ? size << 10 : size;
  }
  return size_t{1} << 25;
}

}  // namespace

void* take_memory(size_t bytes) {
  if (bytes == 0) return nullptr;
  const bool large = kKeep && bytes >= kLarge;
  const size_t size = large ? rounded(bytes) : bytes;
  if (large) {
    const std::lock_guard<std::mutex> guard(kept().mutex);
    auto found = kept().free.upper_bound(size);
    if (found != kept().free.begin() && (--found)->first == size) {  // the last one freed: the caches may know it
      void* data = found->second;
      kept().free.erase(found);
      kept().bytes -= size;
      return data;
    }
  }
  const bool huge = size >= kHuge;
  void* data = nullptr;
  if (posix_memalign(&data, huge ? kHuge : kAlignment, size) != 0) throw std::bad_alloc();
  if (huge) prefer_huge_pages(data, size);
  return data;
}

void give_memory(void* data, size_t bytes) noexcept {
  if (data == nullptr) return;
  if (kKeep && bytes >= kLarge) {
    const size_t size = rounded(bytes);
    const std::lock_guard<std::mutex> guard(kept().mutex);
    if (kept().bytes + size <= kMostKept) {
      try {
        kept().free.emplace(size, data);
        kept().bytes += size;
        return;
      } catch (const std::bad_alloc&) {
      }
    }
  }
  std::free(data);
}

void prefer_huge_pages([[maybe_unused]] void* data, [[maybe_unused]] size_t bytes) {
#if defined(__linux__)
  const auto begin = (reinterpret_cast<uintptr_t>(data) + kHuge - 1) / kHuge * kHuge;
  const auto end = (reinterpret_cast<uintptr_t>(data) + bytes) / kHuge * kHuge;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

bool exceeds_caches(size_t bytes) {
  static const size_t cache = last_cache();
  return bytes > cache;
}

void forget_memory() {
  const std::lock_guard<std::mutex> guard(kept().mutex);
  for (const auto& entry : kept().free) std::free(entry.second);
  kept().free.clear();
  kept().bytes = 0;
}

}  // namespace gwsss_fast
