// What all families share: small vector loops, prefetching, hashing, and groups by key.
#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

#ifdef __AVX__
#include <immintrin.h>
#endif
#include <omp.h>

using i64 = std::int64_t;
using u64 = std::uint64_t;
using u32 = std::uint32_t;

constexpr int AHEAD = 16;  // how many lookups ahead memory is asked for

// The same for rows of a large table, of which the first cache holds so many lines that come from memory.
inline i64 rows_ahead(i64 width) { return std::clamp<i64>(768 / std::max<i64>(1, width), AHEAD, 48); }

// Asks for the lines of a row, to be read or written.
template <int WRITE = 0, class T>
inline void prefetch(const T* row, i64 width) {
  for (i64 i = 0; i < width; i += 64 / sizeof(T)) __builtin_prefetch(row + i, WRITE, 3);
}

// Asks for the lines of floats that may start anywhere in their first one.
template <int WRITE = 0>
inline void prefetch_span(const float* from, i64 width) {
  prefetch<WRITE>(from, width);
  __builtin_prefetch(from + width - 1, WRITE, 3);
}

// The upper half of a float. What it is made of is rounded to the nearest, of two to the even one.
struct Bfloat16 {
  std::uint16_t bits;

  Bfloat16(float x) {
    u32 all;
    std::memcpy(&all, &x, sizeof x);
    bits = std::isnan(x) ? 0x7fc0 : (all + 0x7fff + (all >> 16 & 1)) >> 16;
  }

  operator float() const {
    const u32 all = u32(bits) << 16;
    float x;
    std::memcpy(&x, &all, sizeof x);
    return x;
  }
};

// Sixteen floats, anywhere; compilers let vectors stand for their elements.
using Line = float __attribute__((vector_size(64), aligned(4)));

// What is too large to stay in the caches until it is read again is written past them: memory is then not read first
// for lines that are overwritten whole. Whole lines only, and `settle` once behind all of them.
inline bool past_caches(const float* out, i64 count) {
  return count >= i64(1) << 22 && reinterpret_cast<std::uintptr_t>(out) % 64 == 0;
}

inline void store_past(float* to, Line line) {
#if defined __AVX512F__
  _mm512_stream_ps(to, line);
#elif defined __AVX__
  __m256 halves[2];
  std::memcpy(halves, &line, sizeof line);
  _mm256_stream_ps(to, halves[0]), _mm256_stream_ps(to + 8, halves[1]);
#else
  *reinterpret_cast<Line*>(to) = line;
#endif
}

inline void settle() {
#ifdef __AVX__
  _mm_sfence();
#endif
}

// Loops of a width known when compiled are unrolled into whole vectors; W = 0 takes any width.
template <int W, bool PAST = false>
inline void copy(float* __restrict to, const float* __restrict from, i64 width) {
  const i64 n = W ? W : width;
  if (W && W % 16 == 0 && PAST) {
    for (i64 i = 0; i < n; i += 16) store_past(to + i, *reinterpret_cast<const Line*>(from + i));
  } else if (W && W % 16 == 0) {
    for (i64 i = 0; i < n; i += 16) *reinterpret_cast<Line*>(to + i) = *reinterpret_cast<const Line*>(from + i);
  } else if (W) {
    for (i64 i = 0; i < n; ++i) to[i] = from[i];
  } else {
    std::memcpy(to, from, n * sizeof(float));
  }
}

template <int W, class To, class From>
inline void add(To* __restrict to, const From* __restrict from, i64 width, float scale = 1) {
  constexpr bool FLOATS = std::is_same_v<To, float> && std::is_same_v<From, float>;
  if constexpr (FLOATS && W && W % 16 == 0) {  // said outright: left to the compiler it became three times slower
    for (i64 i = 0; i < W; i += 16) {
      Line& target = *reinterpret_cast<Line*>(to + i);
      target += scale * *reinterpret_cast<const Line*>(from + i);
    }
  } else {  // of a loop that it has unrolled it makes no vectors where numbers are converted
    const i64 n = FLOATS && W ? W : width;
    for (i64 i = 0; i < n; ++i) to[i] = to[i] + scale * from[i];
  }
}

template <int W>
inline float square(const float* row, i64 width) {
  const i64 n = W ? W : width;
  float total = 0;
#pragma omp simd reduction(+ : total)
  for (i64 i = 0; i < n; ++i) total += row[i] * row[i];
  return total;
}

// Memory of this thread for `count` numbers, at least one, kept from call to call for each `Use`; the pointer is taken
// once, outside of loops.
template <class T, int Use = 0>
inline T* memory(i64 count) {
  static thread_local std::vector<T> kept;
  if (static_cast<i64>(kept.size()) < std::max<i64>(1, count)) kept.resize(std::max<i64>(1, count));
  return kept.data();
}

// Calls f(thread, threads) in each of some threads; one alone is not worth a team. Every thread has a copy of f, which
// should hold values: what lies beside the variables of another thread is slow to read.
template <class F>
inline void team(int threads, F f) {
  if (threads <= 1) return f(0, 1);
#pragma omp parallel num_threads(threads) firstprivate(f)
  f(omp_get_thread_num(), omp_get_num_threads());
}

// Calls f(first, count) for the pieces of this thread's part of [0, n).
template <class F>
inline void in_pieces(i64 n, i64 piece, int thread, int threads, F f) {
  const i64 end = n * (thread + 1) / threads;
  for (i64 first = n * thread / threads; first < end; first += piece) f(first, std::min(piece, end - first));
}

// list = the positions of [0, n) whose flag is 1, where others are 0; returns how many. There is room for 16 more.
inline i64 flagged(const unsigned char* flags, i64 n, u32* list) {
  i64 count = 0, i = 0;
#ifdef __AVX512F__
  __m512i at = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  for (; i + 16 <= n; i += 16, at = _mm512_add_epi32(at, _mm512_set1_epi32(16))) {
    const __m512i wide = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(flags + i)));
    const __mmask16 set = _mm512_test_epi32_mask(wide, wide);
    // compressed in a register: straight to memory is many times slower on some processors
    _mm512_storeu_si512(list + count, _mm512_maskz_compress_epi32(set, at));
    count += __builtin_popcount(set);
  }
#endif
  for (; i < n; ++i) {
    list[count] = static_cast<u32>(i);
    count += flags[i];  // no branch: it could not be foreseen
  }
  return count;
}

// The highest bit is set unless 0 <= x < limit: many are joined by |, which compilers make vectors of.
inline u64 outside(u64 x, u64 limit) { return x | (limit - 1 - x); }

// Whether all of an index lies inside a table.
inline bool inside(const i64* index, i64 rows, i64 n) {
  u64 wrong = 0;
  for (i64 j = 0; j < n; ++j) wrong |= outside(index[j], rows);
  return !(wrong >> 63);
}

// The first position whose index lies outside the table, or -1.
inline i64 first_outside(const i64* index, i64 rows, i64 n) {
  for (i64 j = 0; j < n; ++j) {
    if (!inside(index + j, rows, 1)) return j;
  }
  return -1;
}

// to[n, width] = table[index[0 .. n)]. The index goes on for `more`; memory is asked for ahead, not for the first rows.
template <int W, bool PAST = false>
inline void copy_rows(float* to, const float* table, const i64* index, i64 width, i64 n, i64 more) {
  const i64 ahead = rows_ahead(width);
  for (i64 j = 0; j < n; ++j) {
    if (j + ahead < n + more) prefetch(table + index[j + ahead] * width, width);
    copy<W, PAST>(to + j * width, table + index[j] * width, width);
  }
}

// What each feature has, once for each of some samples, so that a plain loop passes over all of them; in memory of this
// thread.
template <int Use>
inline const i64* spread(const i64* row, i64 features, i64 samples) {
  i64* const to = memory<i64, Use>(samples * features);
  std::copy(row, row + (samples ? features : 0), to);
  for (i64 k = features; k < samples * features; ++k) to[k] = to[k - features];
  return to;
}

// How many samples of so many lookups make a piece: its places stay in the first cache.
inline i64 samples_of(i64 lookups, i64 piece = 512) { return piece / std::max<i64>(1, lookups) + 1; }

// Ids of samples, int32 or int64 (`bytes`) [batch, features], and how many each table has, or null where any id
// will do.
struct Ids {
  const void* at;
  const i64* limits;
  i64 features;
  int bytes;

  i64 operator[](i64 k) const {
    return bytes == 4 ? static_cast<const std::int32_t*>(at)[k] : static_cast<const i64*>(at)[k];
  }

  // With the limits spread out over some samples, as `read` wants them.
  Ids spread(i64 samples) const {
    return {at, limits ? ::spread<9>(limits, features, samples) : nullptr, features, bytes};
  }

  bool wrong(i64 k) const { return limits && outside((*this)[k], limits[k % features]) >> 63; }

  // Widens the ids of some samples; returns whether all lie inside their tables.
  bool read(i64 first, i64 samples, i64* wide) const {
    return bytes == 4 ? widen(static_cast<const std::int32_t*>(at) + first * features, samples, wide)
                      : widen(static_cast<const i64*>(at) + first * features, samples, wide);
  }

  template <class Id>
  bool widen(const Id* __restrict ids, i64 samples, i64* __restrict wide) const {
    u64 wrong = 0;
    for (i64 k = 0; k < samples * features; ++k) wide[k] = ids[k];
    for (i64 k = 0; limits && k < samples * features; ++k) wrong |= outside(wide[k], limits[k]);
    return !(wrong >> 63);
  }
};

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

// Calls f with a number of the type that takes so many bytes: `Bfloat16` or float.
template <class F>
inline void with_numbers(int bytes, F f) {
  return bytes == 2 ? f(Bfloat16(0)) : f(0.0f);
}

// Carter-Wegman modulo P = 2^61 - 1, exact: the same numbers as kernels/universal_hash.py.
constexpr u64 P = (u64(1) << 61) - 1;

inline u64 low(u64 x) { return x & 0xffffffffu; }
inline u64 high(u64 x) { return x >> 32; }

// From AVX-512 on vectors multiply 64-bit numbers in one instruction; before that one number after the other is
// sooner done, by the wide product that processors have for single numbers.
#ifdef __AVX512DQ__
constexpr bool WIDE_PRODUCTS = false;
#else
constexpr bool WIDE_PRODUCTS = true;
#endif
using u128 = unsigned __int128;

// (a x + b) mod P, for a and b below P and x below 2^63; 2^61 = 1
inline u64 multiply_add(u64 a, u64 x, u64 b) {
  u64 y;
  if (WIDE_PRODUCTS) {
    const u128 product = static_cast<u128>(a) * x;
    y = (static_cast<u64>(product) & P) + static_cast<u64>(product >> 61) + b;
  } else {  // products of 32-bit halves only, and no branch: compilers make vectors of it, which have no wider product
    const u64 ones = low(a) * low(x), middle = high(a) * low(x) + low(a) * high(x), top = high(a) * high(x) << 3;
    // of 2^32 middle the lowest 29 bits move up, all others come round
    y = (ones & P) + (ones >> 61) + (middle << 35 >> 3) + (middle >> 29) + (top & P) + (top >> 61) + b;
  }
  y = (y & P) + (y >> 61);
  return std::min(y, y - P);
}

inline u64 add_p(u64 a, u64 b) { return std::min(a + b, a + b - P); }

// x mod m by a multiplication, for x < 2^63 and m < 2^62: the quotient is at most three too small.
struct Modulo {
  u64 m, reciprocal;
  explicit Modulo(u64 m = 1) : m(m), reciprocal(~u64(0) / m) {}
  Modulo(u64 m, u64 reciprocal) : m(m), reciprocal(reciprocal) {}
  u64 operator()(u64 x) const {
    if (WIDE_PRODUCTS) {
      const u64 rest = x - static_cast<u64>((static_cast<u128>(x) * reciprocal) >> 64) * m;
      return std::min(rest, rest - m);
    }
    const u64 r = reciprocal, quotient = high(x) * high(r) + high(high(x) * low(r)) + high(low(x) * high(r));
    u64 rest = x - quotient * m;
    rest = std::min(rest, rest - 2 * m);
    return std::min(rest, rest - m);
  }
};

// Hashes of the columns of some samples, ((a x + b) mod P) mod size, by terms [3, columns]: every a, b, then size. They
// are spread out, so that one plain loop passes over all samples. Without terms nothing is hashed.
struct Slots {
  i64 columns;
  const i64 *a, *b, *sizes, *reciprocals;

  Slots(const i64* terms, i64 columns, i64 samples) : columns(terms ? columns : 0) {
    if (!terms) return;
    i64* const once = memory<i64, 3>(columns);
    for (i64 k = 0; k < columns; ++k) once[k] = Modulo(terms[2 * columns + k]).reciprocal;
    a = spread<4>(terms, columns, samples), b = spread<5>(terms + columns, columns, samples);
    sizes = spread<6>(terms + 2 * columns, columns, samples), reciprocals = spread<7>(once, columns, samples);
  }

  // Puts slots in the place of ids [samples, columns].
  void operator()(i64* __restrict x, i64 samples) const {
    for (i64 k = 0; k < samples * columns; ++k) {
      x[k] = Modulo(sizes[k], reciprocals[k])(multiply_add(a[k], x[k], b[k]));
    }
  }
};

// Tables that are stacked in one of so many rows: the ids of each, where it starts, and terms of `Slots`, or null where
// every id has a row.
struct Stacked {
  Ids ids;
  const i64 *starts, *hash;
  i64 rows;

  // The first position of a batch whose id lies outside its table, or whose row lies outside of all, or -1.
  i64 first_wrong(i64 batch) const {
    const Placing one(*this, 1);
    i64* const index = memory<i64, 2>(ids.features);
    for (i64 s = 0; s < batch; ++s) {
      if (one.place(s, 1, index)) continue;
      i64 f = 0;
      while (!ids.wrong(s * ids.features + f) && inside(index + f, rows, 1)) ++f;
      return s * ids.features + f;
    }
    return -1;
  }

  // Finds rows; with what each table has spread out over some samples.
  struct Placing {
    Ids ids;
    Slots slots;
    const i64* starts;
    i64 rows;

    Placing(const Stacked& tables, i64 samples)
        : ids(tables.ids.spread(samples)),
          slots(tables.hash, ids.features, samples),
          starts(::spread<8>(tables.starts, ids.features, samples)),
          rows(tables.rows) {}

    // index[samples, features] = the rows of ids; returns whether all is inside.
    bool place(i64 first, i64 samples, i64* __restrict index) const {
      const bool known = ids.read(first, samples, index);
      slots(index, samples);
      for (i64 k = 0; k < samples * ids.features; ++k) index[k] += starts[k];
      return known && inside(index, rows, samples * ids.features);
    }
  };
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
