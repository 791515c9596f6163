// Small matrices multiplied in registers. A library whose sizes are known when compiled defines UNROLLED as INLINE.
#pragma once

#include "common.h"

#define INLINE inline __attribute__((always_inline))
#ifndef UNROLLED
#define UNROLLED __attribute__((noinline))
#endif

// The floats of the widest vectors, and how many rows of two such vectors each the registers hold as sums: of 32, or 16.
#if defined __AVX512F__
constexpr int WIDEST = 16, TALLEST = 8;
#elif defined __AVX__
constexpr int WIDEST = 8, TALLEST = 6;
#elif defined __aarch64__
constexpr int WIDEST = 4, TALLEST = 8;
#else
constexpr int WIDEST = 4, TALLEST = 6;
#endif

template <int W>
using Vector __attribute__((vector_size(4 * W), aligned(4), may_alias)) = float;

template <int W, int M, int N>
INLINE void tile(float* to, i64 to_row, const float* a, i64 a_row, i64 a_step, const float* b, i64 b_row, i64 depth,
                 bool more) {
  using V = Vector<W>;
  V sum[M][N];
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m) {
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) {
      sum[m][n] = more ? *reinterpret_cast<const V*>(to + m * to_row + n * W) : V{};
    }
  }
  for (i64 k = 0; k < depth; ++k) {
    V row[N];
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) row[n] = *reinterpret_cast<const V*>(b + k * b_row + n * W);
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
      const float times = a[m * a_row + k * a_step];
#pragma GCC unroll 8
      for (int n = 0; n < N; ++n) sum[m][n] += row[n] * times;
    }
  }
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m) {
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) *reinterpret_cast<V*>(to + m * to_row + n * W) = sum[m][n];
  }
}

// `N` vectors of all rows, in tiles of some heights, which leave room in the registers.
template <int W, int N, int... HEIGHTS>
INLINE void strip(float* to, i64 to_row, const float* a, i64 a_row, i64 a_step, const float* b, i64 b_row, i64 rows,
                  i64 depth, bool more) {
  i64 m = 0;
  const auto tiles = [&](auto height) __attribute__((always_inline)) {
    for (; m + height <= rows; m += height) {
      tile<W, height, N>(to + m * to_row, to_row, a + m * a_row, a_row, a_step, b, b_row, depth, more);
    }
  };
  (tiles(std::integral_constant<int, HEIGHTS>{}), ...);
}

// to[m, n] = sum over k of a[m, k] b[k, n], or added to it if `more`; a may lie transposed. `columns` is a multiple of
// the vectors' width W.
template <int W, int... HEIGHTS>
UNROLLED void multiply(float* to, i64 to_row, const float* a, i64 a_row, i64 a_step, const float* b, i64 b_row,
                       i64 rows, i64 columns, i64 depth, bool more) {
  i64 n = 0;
  for (; n + 2 * W <= columns; n += 2 * W) {
    strip<W, 2, HEIGHTS...>(to + n, to_row, a, a_row, a_step, b + n, b_row, rows, depth, more);
  }
  if (n < columns) strip<W, 1, HEIGHTS...>(to + n, to_row, a, a_row, a_step, b + n, b_row, rows, depth, more);
}

// The same with vectors of `width`, as `vector_width` gives it.
INLINE void multiply(i64 width, float* to, i64 to_row, const float* a, i64 a_row, i64 a_step, const float* b,
                     i64 b_row, i64 rows, i64 columns, i64 depth, bool more) {
  const auto with = [&](auto w) __attribute__((always_inline)) {
    constexpr int W = decltype(w)::value;
    if (TALLEST == 8 && rows % 8 == 0) {
      multiply<W, 8>(to, to_row, a, a_row, a_step, b, b_row, rows, columns, depth, more);
    } else if (TALLEST == 8 && rows % 4 == 0) {
      multiply<W, 4>(to, to_row, a, a_row, a_step, b, b_row, rows, columns, depth, more);
    } else {
      multiply<W, TALLEST, 4, 2, 1>(to, to_row, a, a_row, a_step, b, b_row, rows, columns, depth, more);
    }
  };
  if (width == WIDEST) return with(std::integral_constant<int, WIDEST>{});
  width == 8 ? with(std::integral_constant<int, std::min(WIDEST, 8)>{}) : with(std::integral_constant<int, 4>{});
}

// The width of vectors for rows of so many numbers: 4, 8 or 16.
constexpr i64 vector_width(i64 numbers) { return std::min(WIDEST, numbers > 8 ? 16 : numbers > 4 ? 8 : 4); }

// The same where rows may have no numbers behind them; they are a multiple of 4.
constexpr i64 dividing_width(i64 numbers) {
  return numbers % WIDEST == 0 ? WIDEST : numbers % 8 == 0 ? std::min(WIDEST, 8) : 4;
}

constexpr i64 round_up(i64 numbers, i64 width) { return (numbers + width - 1) / width * width; }

// to[n, m] = from[m, n]
inline void transpose(float* to, i64 to_row, const float* from, i64 from_row, i64 rows, i64 columns) {
  i64 m = 0;
  for (; m + 4 <= rows; m += 4) {
    i64 n = 0;
    for (; n + 4 <= columns; n += 4) {
      using V = float __attribute__((vector_size(16), aligned(4), may_alias));
      using I = int __attribute__((vector_size(16)));
      V a[4];
      for (int i = 0; i < 4; ++i) a[i] = *reinterpret_cast<const V*>(from + (m + i) * from_row + n);
      const V low = __builtin_shuffle(a[0], a[1], I{0, 4, 1, 5}), high = __builtin_shuffle(a[0], a[1], I{2, 6, 3, 7});
      const V low2 = __builtin_shuffle(a[2], a[3], I{0, 4, 1, 5}), high2 = __builtin_shuffle(a[2], a[3], I{2, 6, 3, 7});
      *reinterpret_cast<V*>(to + n * to_row + m) = __builtin_shuffle(low, low2, I{0, 1, 4, 5});
      *reinterpret_cast<V*>(to + (n + 1) * to_row + m) = __builtin_shuffle(low, low2, I{2, 3, 6, 7});
      *reinterpret_cast<V*>(to + (n + 2) * to_row + m) = __builtin_shuffle(high, high2, I{0, 1, 4, 5});
      *reinterpret_cast<V*>(to + (n + 3) * to_row + m) = __builtin_shuffle(high, high2, I{2, 3, 6, 7});
    }
    for (; n < columns; ++n) {
      for (int i = 0; i < 4; ++i) to[n * to_row + m + i] = from[(m + i) * from_row + n];
    }
  }
  for (; m < rows; ++m) {
    for (i64 n = 0; n < columns; ++n) to[n * to_row + m] = from[m * from_row + n];
  }
}
