// Uninitialised memory for large arrays.
#pragma once

#include <cstddef>
#include <limits>
#include <new>
#include <utility>

namespace gwsss_fast {

// `bytes` of memory aligned for any vector, perhaps of an array that was freed before: a call touches tens of
// megabytes, and having the system map and clear them would take as long as working on them. Throws std::bad_alloc.
void* take_memory(size_t bytes);
void give_memory(void* data, size_t bytes) noexcept;

// Asks for huge pages where `bytes` from `data` on have none yet: memory fresh from the system costs less then.
void prefer_huge_pages(void* data, size_t bytes);

// Returns what is kept to the system.
void forget_memory();

// Whether so many bytes are more than the processor's last cache holds, so that what is written leaves it unread.
bool exceeds_caches(size_t bytes);

// `size` values of a trivial type.
template <class T>
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(size_t size) : size_(size) {
    if (size > std::numeric_limits<size_t>::max() / sizeof(T) / 2) throw std::bad_alloc();
    data_ = static_cast<T*>(take_memory(bytes()));
  }
  Buffer(Buffer&& other) noexcept { swap(other); }
  Buffer& operator=(Buffer&& other) noexcept {
    swap(other);
    return *this;
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() { give_memory(data_, bytes()); }

  T* data() { return data_; }
  const T* data() const { return data_; }
  T& operator[](size_t i) { return data_[i]; }
  const T& operator[](size_t i) const { return data_[i]; }
  size_t size() const { return size_; }
  size_t bytes() const { return size_ * sizeof(T); }

 private:
  void swap(Buffer& other) {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
  }

  T* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace gwsss_fast
