// What all families share: small vector loops, prefetching, hashing, and groups by key.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

#include <omp.h>

using i64 = std::int64_t;
using u64 = std::uint64_t;
using u32 = std::uint32_t;

constexpr int AHEAD = 16;  // how many lookups ahead memory is asked for

// Asks for the lines of a row, to be read or written.
template <int WRITE = 0>
inline void prefetch(const float* row, i64 width) {
  for (i64 i = 0; i < width; i += 16) __builtin_prefetch(row + i, WRITE, 3);
}

// Asks for the lines of floats that may start anywhere in their first one.
template <int WRITE = 0>
inline void prefetch_span(const float* from, i64 width) {
  prefetch<WRITE>(from, width);
  __builtin_prefetch(from + width - 1, WRITE, 3);
}

// Sixteen floats, anywhere; compilers let vectors stand for their elements.
using Line = float __attribute__((vector_size(64), aligned(4)));

// Loops of a width known when compiled are unrolled into whole vectors; W = 0 takes any width.
template <int W>
inline void copy(float* __restrict to, const float* __restrict from, i64 width) {
  const i64 n = W ? W : width;
  if (W && W % 16 == 0) {
    for (i64 i = 0; i < n; i += 16) *reinterpret_cast<Line*>(to + i) = *reinterpret_cast<const Line*>(from + i);
  } else if (W) {
    for (i64 i = 0; i < n; ++i) to[i] = from[i];
  } else {
    std::memcpy(to, from, n * sizeof(float));
  }
}

template <int W>
inline void add(float* __restrict to, const float* __restrict from, i64 width, float scale = 1) {
  const i64 n = W ? W : width;
  if (W && W % 16 == 0) {  // said outright: left to the compiler it became three times slower in places
    for (i64 i = 0; i < n; i += 16) {
      Line& target = *reinterpret_cast<Line*>(to + i);
      target += scale * *reinterpret_cast<const Line*>(from + i);
    }
    return;
  }
  for (i64 i = 0; i < n; ++i) to[i] += scale * from[i];
}

template <int W>
inline float square(const float* row, i64 width) {
  const i64 n = W ? W : width;
  float total = 0;
#pragma omp simd reduction(+ : total)
  for (i64 i = 0; i < n; ++i) total += row[i] * row[i];
  return total;
}

// Memory of this thread for `count` positions, kept from call to call; the pointer is taken once, outside of loops.
inline u32* positions(i64 count) {
  static thread_local std::vector<u32> list;
  if (static_cast<i64>(list.size()) < count) list.resize(count);
  return list.data();
}

// Calls f with the width as a compile-time constant where one was made ready.
template <class F>
inline void with_width(i64 width, F f) {
  switch (width) {
    case 1: return f(std::integral_constant<int, 1>{});
    case 2: return f(std::integral_constant<int, 2>{});
    case 4: return f(std::integral_constant<int, 4>{});
    case 8: return f(std::integral_constant<int, 8>{});
    case 16: return f(std::integral_constant<int, 16>{});
    case 32: return f(std::integral_constant<int, 32>{});
    case 64: return f(std::integral_constant<int, 64>{});
    case 128: return f(std::integral_constant<int, 128>{});
    default: return f(std::integral_constant<int, 0>{});
  }
}

// Carter-Wegman modulo P = 2^61 - 1, exact: the same numbers as kernels/universal_hash.py.
constexpr u64 P = (u64(1) << 61) - 1;

inline u64 mod_p(u64 y) {
  y = (y & P) + (y >> 61);
  return y >= P ? y - P : y;
}

inline u64 multiply_add(u64 a, u64 x, u64 b) {  // a, b < P, x < 2^63
  unsigned __int128 y = static_cast<unsigned __int128>(a) * x + b;
  return mod_p((static_cast<u64>(y) & P) + static_cast<u64>(y >> 61));
}

inline u64 add_p(u64 a, u64 b) {
  const u64 total = a + b;
  return total >= P ? total - P : total;
}

// x mod m by a multiplication, for x < 2^63: the quotient is at most one too small.
struct Modulo {
  u64 m, reciprocal;
  explicit Modulo(u64 m) : m(m), reciprocal(~u64(0) / m) {}
  u64 operator()(u64 x) const {
    const u64 rest = x - static_cast<u64>((static_cast<unsigned __int128>(x) * reciprocal) >> 64) * m;
    return rest >= m ? rest - m : rest;
  }
};

// Chains of positions by key: open addressing, kept from call to call by each thread.
class Groups {
 public:
  void start(i64 expected) {
    u64 capacity = 64;
    while (capacity < 2 * static_cast<u64>(expected)) capacity *= 2;
    table_.assign(capacity, Entry{-1, END});
    found_.clear();
    links_.clear();
  }

  void add(i64 key, u32 position) {
    if (2 * (found_.size() + 1) > table_.size()) grow();
    Entry& entry = table_[find(key)];
    if (entry.key < 0) {
      entry.key = key;
      found_.push_back(static_cast<u32>(&entry - table_.data()));
    }
    links_.push_back({position, entry.head});
    entry.head = static_cast<u32>(links_.size() - 1);
  }

  i64 size() const { return static_cast<i64>(found_.size()); }
  i64 key(i64 group) const { return table_[found_[group]].key; }
  // Calls f with every position of a group, the last one first.
  template <class F>
  void each(i64 group, F f) const {
    for (u32 at = table_[found_[group]].head; at != END; at = links_[at].next) f(links_[at].position);
  }

 private:
  static constexpr u32 END = ~u32(0);
  struct Entry {
    i64 key;
    u32 head;
  };
  struct Link {
    u32 position, next;
  };

  u64 find(i64 key) const {
    const u64 mask = table_.size() - 1;
    u64 at = (static_cast<u64>(key) * 0x9E3779B97F4A7C15u >> 20) & mask;
    while (table_[at].key != key && table_[at].key >= 0) at = (at + 1) & mask;
    return at;
  }

  void grow() {
    std::vector<Entry> old(4 * table_.size(), Entry{-1, END});
    old.swap(table_);
    for (u32& at : found_) {
      const Entry entry = old[at];
      at = static_cast<u32>(find(entry.key));
      table_[at] = entry;
    }
  }

  std::vector<Entry> table_;
  std::vector<u32> found_;
  std::vector<Link> links_;
};
