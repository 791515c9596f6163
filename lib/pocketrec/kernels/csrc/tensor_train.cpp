// Tensor trains of three cores: rows read, or the cores trained in place.
//
// A row x of a table is G1[i1] G2[i2] G3[i3], matrices of q1 x rank, rank x (q2 rank) and rank x q3. Lookups are
// sorted by (i2, i1, i3): a slice of the large middle core is read once for all rows that it has a part in, the product
// of the first two is computed once a pair, and repeated rows once. Sums over the rank run along whole vectors: where
// the rank is not a multiple of their width, slices are copied with zeros behind. Every number has one writer, which
// adds in the sorted order: the same bits for any number of threads.
#include "common.h"

namespace {

constexpr i64 PAIRS = 16;  // pairs whose products lie in the cache together

template <int W>
using Vector __attribute__((vector_size(4 * W), aligned(4), may_alias)) = float;

template <int W, int M, int N>
inline __attribute__((always_inline)) void tile(float* to, i64 to_row, const float* a, i64 a_row, i64 a_step,
                                                const float* b, i64 b_row, i64 depth, bool more) {
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

// `N` vectors of all rows, in tiles that leave room in the registers.
template <int W, int N>
inline void strip(float* to, i64 to_row, const float* a, i64 a_row, i64 a_step, const float* b, i64 b_row, i64 rows,
                  i64 depth, bool more) {
  const auto some = [&](auto count, i64& m) {
    constexpr int M = decltype(count)::value;
    for (; m + M <= rows; m += M) {
      tile<W, M, N>(to + m * to_row, to_row, a + m * a_row, a_row, a_step, b, b_row, depth, more);
    }
  };
  i64 m = 0;
  some(std::integral_constant<int, 8>{}, m);
  some(std::integral_constant<int, 4>{}, m);
  some(std::integral_constant<int, 2>{}, m);
  some(std::integral_constant<int, 1>{}, m);
}

template <int W>
void multiply(float* to, i64 to_row, const float* a, i64 a_row, i64 a_step, const float* b, i64 b_row, i64 rows,
              i64 columns, i64 depth, bool more) {
  i64 n = 0;
  for (; n + 2 * W <= columns; n += 2 * W) {
    strip<W, 2>(to + n, to_row, a, a_row, a_step, b + n, b_row, rows, depth, more);
  }
  if (n < columns) strip<W, 1>(to + n, to_row, a, a_row, a_step, b + n, b_row, rows, depth, more);
}

// The width of vectors for rows of so many numbers.
inline i64 vector_width(i64 numbers) { return numbers > 8 ? 16 : numbers > 4 ? 8 : 4; }

inline i64 round_up(i64 numbers, i64 width) { return (numbers + width - 1) / width * width; }

// to[m, n] = sum over k of a[m, k] b[k, n], or added to it if `more`; a may lie transposed. `columns` is a multiple of
// the vectors' width.
inline void multiply(i64 width, float* to, i64 to_row, const float* a, i64 a_row, i64 a_step, const float* b, i64 b_row,
                     i64 rows, i64 columns, i64 depth, bool more = false) {
  if (width == 16) {
    multiply<16>(to, to_row, a, a_row, a_step, b, b_row, rows, columns, depth, more);
  } else if (width == 8) {
    multiply<8>(to, to_row, a, a_row, a_step, b, b_row, rows, columns, depth, more);
  } else {
    multiply<4>(to, to_row, a, a_row, a_step, b, b_row, rows, columns, depth, more);
  }
}

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

// Rows of `width` numbers, to rows of another length; to a lower place in the same memory too.
inline void copy_rows(float* to, i64 to_row, const float* from, i64 from_row, i64 rows, i64 width) {
  for (i64 m = 0; m < rows; ++m) std::memmove(to + m * to_row, from + m * from_row, width * sizeof(float));
}

struct Shape {
  i64 rank, q1, q2, q3;
  i64 rank_width = vector_width(rank), q3_width = vector_width(q3);
  i64 padded = round_up(rank, rank_width), q3_padded = round_up(q3, q3_width);
  i64 first = q1 * rank, middle = rank * q2 * rank, last = rank * q3, dim = q1 * q2 * q3;
  i64 product = q1 * q2 * padded;  // of a pair
};

// The lookups of one table in their sorted order.
struct Plan {
  struct Item {
    u32 position, first, middle, last;
  };
  struct Row {
    u32 item, last, place;  // where its items start; its slice; where its share of the slice's gradient goes
  };
  struct Pair {
    u32 row, first, place;
  };
  struct Group {
    u32 pair, middle;
  };
  std::vector<Item> items, sorted;
  std::vector<Row> rows;
  std::vector<Pair> pairs;
  std::vector<Group> groups;             // each of these three has an end behind its last
  std::vector<u32> counts, firsts, lasts;  // of slices of the first and the last core: where their shares start

  void make(const i64* ids, const i64* tables, i64 table, i64 table_count, i64 n, const i64* radix) {
    const Divisor by_all(radix[1] * radix[2]), by_last(radix[2]);
    counts.assign(radix[0] + radix[1] + radix[2] + 3, 0);
    u32 *count1 = counts.data(), *count2 = count1 + radix[0] + 1, *count3 = count2 + radix[1] + 1;
    const i64 step = tables ? 1 : table_count;
    items.resize((n + step - 1) / step);
    Item* end = items.data();
    for (i64 j = tables ? 0 : table; j < n; j += step) {
      if (ids[j] < 0 || (tables && tables[j] != table)) continue;
      const u64 x = ids[j], first = by_all(x), rest = x - first * by_all.m, middle = by_last(rest);
      const u32 last = static_cast<u32>(rest - middle * by_last.m);
      *end++ = {static_cast<u32>(j), static_cast<u32>(first), static_cast<u32>(middle), last};
      ++count1[first + 1], ++count2[middle + 1], ++count3[last + 1];
    }
    items.resize(end - items.data());
    sorted.resize(items.size());
    pass(count3, radix[2], &Item::last);
    pass(count1, radix[0], &Item::first);
    pass(count2, radix[1], &Item::middle);
    rows.clear(), pairs.clear(), groups.clear();
    Item before{0, ~u32(0), ~u32(0), ~u32(0)};
    for (u32 j = 0; j < items.size(); before = items[j++]) {
      const Item& item = items[j];
      const bool group = item.middle != before.middle, pair = group || item.first != before.first;
      if (!pair && item.last == before.last) continue;
      if (group) groups.push_back({static_cast<u32>(pairs.size()), item.middle});
      if (pair) pairs.push_back({static_cast<u32>(rows.size()), item.first, 0});
      rows.push_back({j, item.last, 0});
    }
    groups.push_back({static_cast<u32>(pairs.size()), 0});
    pairs.push_back({static_cast<u32>(rows.size()), 0, 0});
    rows.push_back({static_cast<u32>(items.size()), 0, 0});
  }

  // Gives the shares of one slice's gradient places beside each other.
  void place(const i64* radix) {
    share(pairs, &Pair::first, firsts, radix[0]);
    share(rows, &Row::last, lasts, radix[2]);
  }

 private:
  struct Divisor {
    u64 m, reciprocal;
    explicit Divisor(u64 m) : m(m), reciprocal(m > 1 ? ~u64(0) / m : 0) {}
    u64 operator()(u64 x) const {
      if (m == 1) return x;
      u64 quotient = static_cast<u64>((static_cast<unsigned __int128>(x) * reciprocal) >> 64);
      while (x - quotient * m >= m) ++quotient;
      return quotient;
    }
  };

  void pass(u32* count, i64 radix, u32 Item::*digit) {
    for (i64 i = 0; i < radix; ++i) count[i + 1] += count[i];
    Item* to = sorted.data();
    for (const Item& item : items) to[count[item.*digit]++] = item;
    items.swap(sorted);
  }

  template <class T>
  static void share(std::vector<T>& all, u32 T::*slice, std::vector<u32>& starts, i64 radix) {
    starts.assign(radix + 2, 0);
    for (size_t j = 0; j + 1 < all.size(); ++j) ++starts[all[j].*slice + 2];
    for (i64 i = 0; i < radix; ++i) starts[i + 2] += starts[i + 1];
    for (size_t j = 0; j + 1 < all.size(); ++j) all[j].place = starts[all[j].*slice + 1]++;
  }
};

// The slices [low, high) of this thread: about as many shares of the gradient as every other.
inline void my_slices(const std::vector<u32>& starts, i64 radix, i64& low, i64& high) {
  const i64 thread = omp_get_thread_num(), threads = omp_get_num_threads(), shares = starts[radix];
  const auto from = [&](i64 t) {
    return t == threads ? radix : std::lower_bound(starts.begin(), starts.begin() + radix, shares * t / threads) - starts.begin();
  };
  low = from(thread), high = from(thread + 1);
}

inline void my_groups(const Plan& plan, i64& low, i64& high) {
  const i64 thread = omp_get_thread_num(), threads = omp_get_num_threads(), pairs = plan.groups.back().pair;
  const auto from = [&](i64 t) {
    return std::lower_bound(plan.groups.begin(), plan.groups.end() - 1, pairs * t / threads,
                            [](const Plan::Group& group, i64 pair) { return group.pair < pair; }) -
           plan.groups.begin();
  };
  low = from(thread), high = thread + 1 == threads ? plan.groups.size() - 1 : from(thread + 1);
}

// What a thread needs for the slice of the middle core and the pairs that it works on.
struct Work {
  std::vector<float> first, middle, flipped, product, gradient, of_first, sum, last, row;
  std::vector<char> has_last;

  static void room(std::vector<float>& numbers, i64 count) {
    if (static_cast<i64>(numbers.size()) < count) numbers.resize(count);
  }

  // The slice with its rows as long as vectors, [rank, q2, padded].
  const float* padded(const float* slice, const Shape& s) {
    if (s.padded == s.rank) return slice;
    middle.assign(s.rank * s.q2 * s.padded, 0);
    copy_rows(middle.data(), s.padded, slice, s.rank, s.rank * s.q2, s.rank);
    return middle.data();
  }

  // Products of the first two cores for some pairs of one slice, [pairs, q1 q2, padded].
  void multiply_pairs(const Plan& plan, i64 pair, i64 count, const float* core, const float* slice, const Shape& s) {
    room(first, PAIRS * s.first), room(product, PAIRS * s.product);
    for (i64 i = 0; i < count; ++i) {
      copy<0>(first.data() + i * s.first, core + plan.pairs[pair + i].first * s.first, s.first);
    }
    multiply(s.rank_width, product.data(), s.q2 * s.padded, first.data(), s.rank, 1, slice, s.q2 * s.padded,
             count * s.q1, s.q2 * s.padded, s.rank);
  }
};

thread_local Work work;

void train_slice(float* target, float* total, const float* gradient, i64 width, float lr, float eps) {
  float scale = lr;
  if (total) {
    *total += square<0>(gradient, width) / width;
    scale = lr / (std::sqrt(*total) + eps);
  }
  add<0>(target, gradient, width, -scale);
}

// Where a table's slices start in each core.
std::vector<i64> starts(const i64* radices, i64 tables) {
  std::vector<i64> all(3 * (tables + 1), 0);
  for (i64 i = 0; i < 3 * tables; ++i) all[i + 3] = all[i] + radices[i];
  return all;
}

// The first position whose id lies outside its table, or -1; an id below 0 asks for nothing.
i64 outside(const i64* ids, const i64* tables, const i64* radices, i64 table_count, i64 n) {
  std::vector<i64> limits(table_count);
  for (i64 t = 0; t < table_count; ++t) limits[t] = radices[3 * t] * radices[3 * t + 1] * radices[3 * t + 2];
  for (i64 j = 0; j < n; ++j) {
    const i64 t = tables ? tables[j] : j % table_count;
    if (t < 0 || t >= table_count || ids[j] >= limits[t]) return j;
  }
  return -1;
}

}  // namespace

// out[n, dim] = rows of tables: ids [batch, tables], or ids [n] of tables [n] where `tables` is given. Zeros for an id
// below 0. Returns the first position whose id lies outside its table, or -1; then nothing has been read.
extern "C" i64 tensor_train(const float* core1, const float* core2, const float* core3, const i64* ids, const i64* tables,
                            const i64* radices, float* out, i64 table_count, i64 n, i64 rank, i64 q1, i64 q2, i64 q3,
                            int threads) {
  if (const i64 bad = outside(ids, tables, radices, table_count, n); bad >= 0) return bad;
  const Shape s{rank, q1, q2, q3};
  const std::vector<i64> start = starts(radices, table_count);
  static thread_local Plan own_plan;
  Plan& plan = own_plan;
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
#pragma omp for schedule(static) nowait
    for (i64 j = 0; j < n; ++j) {
      if (ids[j] < 0) std::fill_n(out + j * s.dim, s.dim, 0.0f);
    }
    Work::room(work.row, s.q1 * s.q2 * s.q3_padded);
    for (i64 t = 0; t < table_count; ++t) {
#pragma omp single
      plan.make(ids, tables, t, table_count, n, radices + 3 * t);
      const float *from1 = core1 + start[3 * t] * s.first, *from2 = core2 + start[3 * t + 1] * s.middle;
      const float* from3 = core3 + start[3 * t + 2] * s.last;
      i64 low, high;
      my_groups(plan, low, high);
      for (i64 g = low; g < high; ++g) {
        const float* slice = work.padded(from2 + plan.groups[g].middle * s.middle, s);
        for (i64 pair = plan.groups[g].pair; pair < plan.groups[g + 1].pair; pair += PAIRS) {
          const i64 count = std::min<i64>(PAIRS, plan.groups[g + 1].pair - pair);
          work.multiply_pairs(plan, pair, count, from1, slice, s);
          for (i64 i = 0; i < count; ++i) {
            for (i64 r = plan.pairs[pair + i].row; r < plan.pairs[pair + i + 1].row; ++r) {
              const Plan::Row& row = plan.rows[r];
              const float* last = from3 + row.last * s.last;
              float* to = out + plan.items[row.item].position * s.dim;
              const float* product = work.product.data() + i * s.product;
              if (s.q3 == s.q3_padded) {
                multiply(s.q3_width, to, s.q3, product, s.padded, 1, last, s.q3, s.q1 * s.q2, s.q3, s.rank);
              } else {
                Work::room(work.last, s.rank * s.q3_padded);
                copy_rows(work.last.data(), s.q3_padded, last, s.q3, s.rank, s.q3);
                multiply(s.q3_width, work.row.data(), s.q3_padded, product, s.padded, 1, work.last.data(), s.q3_padded,
                         s.q1 * s.q2, s.q3_padded, s.rank);
                copy_rows(to, s.q3, work.row.data(), s.q3_padded, s.q1 * s.q2, s.q3);
              }
              for (i64 k = row.item + 1; k < plan.rows[r + 1].item; ++k) {
                copy<0>(out + plan.items[k].position * s.dim, to, s.dim);
              }
            }
          }
        }
      }
#pragma omp barrier
    }
  }
  return -1;
}

// target -= lr times the gradients of the cores, or Adagrad with one accumulator a slice where `total`s are given.
// Targets may be the cores themselves: nothing is read after it was written. Returns as `tensor_train` does.
extern "C" i64 train_tensor_train(const float* core1, const float* core2, const float* core3, float* target1,
                                  float* target2, float* target3, float* total1, float* total2, float* total3,
                                  const i64* ids, const i64* tables, const i64* radices, const float* gradient,
                                  i64 table_count, i64 n, i64 rank, i64 q1, i64 q2, i64 q3, float lr, float eps,
                                  int threads) {
  if (const i64 bad = outside(ids, tables, radices, table_count, n); bad >= 0) return bad;
  const Shape s{rank, q1, q2, q3};
  const std::vector<i64> start = starts(radices, table_count);
  const i64 first = s.q1 * s.padded, middle = s.q2 * s.padded, last = s.q3 * s.padded;  // with padded rows
  static thread_local Plan own_plan;
  static thread_local std::vector<float> own_firsts, own_lasts;
  Plan& plan = own_plan;
  std::vector<float>&firsts = own_firsts, &lasts = own_lasts;  // shares of the gradients of the outer cores
#pragma omp parallel num_threads(threads) if (threads > 1)
  for (i64 t = 0; t < table_count; ++t) {
    const i64* radix = radices + 3 * t;
#pragma omp single
    {
      plan.make(ids, tables, t, table_count, n, radix);
      plan.place(radix);
      Work::room(firsts, plan.pairs.size() * first);
      Work::room(lasts, plan.rows.size() * last);
    }
    const i64 at1 = start[3 * t], at2 = start[3 * t + 1], at3 = start[3 * t + 2];
    Work::room(work.gradient, PAIRS * s.product), Work::room(work.sum, s.rank * middle), Work::room(work.row, s.dim);
    Work::room(work.of_first, PAIRS * first), Work::room(work.last, radix[2] * last);
    Work::room(work.flipped, middle * s.padded), work.has_last.assign(radix[2], false);
    if (s.padded > s.rank) {
      std::fill(work.last.begin(), work.last.end(), 0.0f), std::fill(work.flipped.begin(), work.flipped.end(), 0.0f);
    }
    i64 low, high;
    my_groups(plan, low, high);
    for (i64 g = low; g < high; ++g) {
      const i64 slice_at = at2 + plan.groups[g].middle;
      const float* slice = work.padded(core2 + slice_at * s.middle, s);
      transpose(work.flipped.data(), s.padded, slice, middle, s.rank, middle);
      std::fill_n(work.sum.data(), s.rank * middle, 0.0f);
      for (i64 pair = plan.groups[g].pair; pair < plan.groups[g + 1].pair; pair += PAIRS) {
        const i64 count = std::min<i64>(PAIRS, plan.groups[g + 1].pair - pair);
        work.multiply_pairs(plan, pair, count, core1 + at1 * s.first, slice, s);
        for (i64 i = 0; i < count; ++i) {
          const float* product = work.product.data() + i * s.product;
          float* of_product = work.gradient.data() + i * s.product;
          for (i64 r = plan.pairs[pair + i].row; r < plan.pairs[pair + i + 1].row; ++r) {
            const Plan::Row& row = plan.rows[r];
            const float* upstream = gradient + plan.items[row.item].position * s.dim;
            if (plan.rows[r + 1].item > row.item + 1) {
              copy<0>(work.row.data(), upstream, s.dim);
              for (i64 k = row.item + 1; k < plan.rows[r + 1].item; ++k) {
                add<0>(work.row.data(), gradient + plan.items[k].position * s.dim, s.dim);
              }
              upstream = work.row.data();
            }
            float* flipped = work.last.data() + row.last * last;
            if (!work.has_last[row.last]) {
              transpose(flipped, s.padded, core3 + (at3 + row.last) * s.last, s.q3, s.rank, s.q3);
              work.has_last[row.last] = true;
            }
            multiply(s.rank_width, of_product, s.padded, upstream, s.q3, 1, flipped, s.padded, s.q1 * s.q2, s.padded,
                     s.q3, r > plan.pairs[pair + i].row);
            multiply(s.rank_width, lasts.data() + row.place * last, s.padded, upstream, 1, s.q3, product, s.padded, s.q3,
                     s.padded, s.q1 * s.q2);
          }
        }
        multiply(s.rank_width, work.sum.data(), middle, work.first.data(), 1, s.rank, work.gradient.data(), middle,
                 s.rank, middle, count * s.q1, true);
        multiply(s.rank_width, work.of_first.data(), s.padded, work.gradient.data(), middle, 1, work.flipped.data(),
                 s.padded, count * s.q1, s.padded, middle);
        for (i64 i = 0; i < count; ++i) {
          copy<0>(firsts.data() + plan.pairs[pair + i].place * first, work.of_first.data() + i * first, first);
        }
      }
      if (s.padded > s.rank) copy_rows(work.sum.data(), s.rank, work.sum.data(), s.padded, s.rank * s.q2, s.rank);
      train_slice(target2 + slice_at * s.middle, total2 ? total2 + slice_at : nullptr, work.sum.data(), s.middle, lr, eps);
    }
#pragma omp barrier
    Work::room(work.sum, std::max(first, last)), Work::room(work.row, s.last);
    my_slices(plan.firsts, radix[0], low, high);
    for (i64 i = low; i < high; ++i) {
      if (plan.firsts[i] == plan.firsts[i + 1]) continue;
      float* sum = firsts.data() + plan.firsts[i] * first;
      for (u32 k = plan.firsts[i] + 1; k < plan.firsts[i + 1]; ++k) add<0>(sum, firsts.data() + k * first, first);
      if (s.padded > s.rank) copy_rows(sum, s.rank, sum, s.padded, s.q1, s.rank);
      train_slice(target1 + (at1 + i) * s.first, total1 ? total1 + at1 + i : nullptr, sum, s.first, lr, eps);
    }
    my_slices(plan.lasts, radix[2], low, high);
    for (i64 i = low; i < high; ++i) {
      if (plan.lasts[i] == plan.lasts[i + 1]) continue;
      float* sum = lasts.data() + plan.lasts[i] * last;
      for (u32 k = plan.lasts[i] + 1; k < plan.lasts[i + 1]; ++k) add<0>(sum, lasts.data() + k * last, last);
      transpose(work.row.data(), s.q3, sum, s.padded, s.q3, s.rank);
      train_slice(target3 + (at3 + i) * s.last, total3 ? total3 + at3 + i : nullptr, work.row.data(), s.last, lr, eps);
    }
#pragma omp barrier
  }
  return -1;
}
