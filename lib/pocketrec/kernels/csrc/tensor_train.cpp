// Tensor trains of three cores: rows read, or the cores trained in place.
//
// A row x of a table is G1[i1] G2[i2] G3[i3], matrices of q1 x rank, rank x (q2 rank) and rank x q3. Lookups are
// sorted by (i2, i1, i3): a slice of the large middle core is read once for all rows that it has a part in, the product
// of the first two is computed once a pair, and repeated rows once. Sums over the rank run along whole vectors: where
// the rank is not a multiple of their width, slices are copied with zeros behind.
//
// A table's lookups are cut into parts by i2, which threads take in turn and sort: that is sooner done than fetched from
// another core. Gradients of the outer cores are summed within a part, then over the parts, whose number does not
// depend on that of threads: the same bits for any number of threads.
//
// With RANK, Q1, Q2 and Q3 defined the library is for matrices of these sizes alone, and its loops over them are
// unrolled: up to twice as fast at small ranks.
#ifdef RANK
#define SIZE static constexpr i64
#define UNROLLED INLINE
#else
#define SIZE const i64
#endif
#include "matrices.h"

namespace {

constexpr i64 PAIRS = 16;       // pairs whose products lie in the cache together
constexpr i64 TOGETHER = 16;    // lookups whose memory is asked for together
constexpr i64 IN_A_PART = 512;  // lookups in a part, or more: a part sums its gradients by itself
constexpr i64 MOST_PARTS = 16;  // of all tables together: each part has memory for the sums of its own

// Rows of `width` numbers, to rows of another length; to a lower place in the same memory too.
inline void copy_rows(float* to, i64 to_row, const float* from, i64 from_row, i64 rows, i64 width) {
  for (i64 m = 0; m < rows; ++m) std::memmove(to + m * to_row, from + m * from_row, width * sizeof(float));
}

struct Shape {
#ifdef RANK
  SIZE rank = RANK, q1 = Q1, q2 = Q2, q3 = Q3;
  Shape(i64, i64, i64, i64) {}
#else
  SIZE rank, q1, q2, q3;
  Shape(i64 rank, i64 q1, i64 q2, i64 q3) : rank(rank), q1(q1), q2(q2), q3(q3) {}
#endif
  SIZE rank_width = vector_width(rank), q3_width = vector_width(q3);
  SIZE padded = round_up(rank, rank_width), q3_padded = round_up(q3, q3_width);
  SIZE first = q1 * rank, middle = rank * q2 * rank, last = rank * q3, q12 = q1 * q2, dim = q12 * q3;
  SIZE middle_row = q2 * padded, middle_width = dividing_width(middle_row);
  SIZE product = q12 * padded;  // of a pair
};

template <class T>
inline void room(std::vector<T>& all, i64 count) {
  if (static_cast<i64>(all.size()) < count) all.resize(count);
}

inline void copy_floats(float* to, const float* from, i64 count) {
  i64 i = 0;
  for (; i + 16 <= count; i += 16) copy<16>(to + i, from + i, 16);
  for (; i < count; ++i) to[i] = from[i];
}

// x / m by a multiplication, for x < 2^63: the quotient is at most one too small.
struct Divisor {
  u64 m, reciprocal;
  explicit Divisor(u64 m) : m(m), reciprocal(~u64(0) / m) {}
  u64 operator()(u64 x) const {
    const u64 quotient = static_cast<u64>((static_cast<unsigned __int128>(x) * reciprocal) >> 64);
    return quotient + (x - quotient * m >= m);
  }
};

// The lookups of one table, and those of one part of it in their sorted order.
struct Plan {
  struct Item {
    u32 position, first, middle, last;
  };
  struct Row {
    u32 item, last;  // where its items start, and its slice
  };
  struct Pair {
    u32 row, first;
  };
  struct Group {
    u32 pair, middle;
  };
  std::vector<Item> items, sorted;
  std::vector<Row> rows;
  std::vector<Pair> pairs;
  std::vector<Group> groups;  // each of these three has an end behind its last
  i64 group_count;

  // Takes up the lookups of a table.
  void take(const i64* ids, const i64* tables, i64 table, i64 table_count, i64 n, const i64* radix) {
    const Divisor by_all(radix[1] * radix[2]), by_last(radix[2]);
    radix_ = radix;
    before_.assign(radix[1] + 1, 0);
    const i64 step = tables ? 1 : table_count, most = (n + step - 1) / step + 1;
    room(all_, most);
    Item* end = all_.data();
    for (i64 j = tables ? 0 : table; j < n; j += step) {
      if (ids[j] < 0 || (tables && tables[j] != table)) continue;
      const u64 x = ids[j], first = by_all(x), rest = x - first * by_all.m, middle = by_last(rest);
      const u32 last = static_cast<u32>(rest - middle * by_last.m);
      *end++ = {static_cast<u32>(j), static_cast<u32>(first), static_cast<u32>(middle), last};
      ++before_[middle + 1];
    }
    count_ = static_cast<u32>(end - all_.data());
    for (i64 i = 0; i < radix[1]; ++i) before_[i + 1] += before_[i];
  }

  // Sorts the lookups of a part: middle slices that follow each other, with about as many lookups as in any other.
  void sort(i64 part, i64 parts) {
    const u32 low = start(part, parts), high = start(part + 1, parts), count = before_[high] - before_[low];
    room(items, count_ + 1), room(sorted, count + 1), room(rows, count + 1), room(pairs, count + 1);
    room(groups, count + 1);
    Item* end = items.data();
    for (u32 j = 0; j < count_; ++j) {  // without branches, which no one could foretell
      *end = all_[j];
      end += all_[j].middle - low < high - low;
    }
    pass(count, &Item::last, 0, radix_[2]);
    pass(count, &Item::first, 0, radix_[0]);
    pass(count, &Item::middle, low, high);
    u32 row = 0, pair = 0, group = 0;
    Item last{0, ~u32(0), ~u32(0), ~u32(0)};
    for (u32 j = 0; j < count; last = items[j++]) {
      const Item& item = items[j];
      const bool other_group = item.middle != last.middle, other_pair = other_group | (item.first != last.first);
      groups[group] = {pair, item.middle}, pairs[pair] = {row, item.first}, rows[row] = {j, item.last};
      group += other_group, pair += other_pair, row += other_pair | (item.last != last.last);
    }
    groups[group] = {pair, 0}, pairs[pair] = {row, 0}, rows[row] = {count, 0};
    group_count = group;
  }

 private:
  u32 start(i64 part, i64 parts) const {
    if (part == parts) return static_cast<u32>(before_.size() - 1);
    const u32 share = static_cast<u32>(count_ * part / parts);
    return static_cast<u32>(std::lower_bound(before_.begin(), before_.end(), share) - before_.begin());
  }

  void pass(u32 count, u32 Item::*digit, u32 low, u32 high) {
    counts_.assign(high - low + 1, 0);
    u32* const at = counts_.data();
    for (u32 j = 0; j < count; ++j) ++at[items[j].*digit - low + 1];
    for (u32 i = 0; i < high - low; ++i) at[i + 1] += at[i];
    Item *to = sorted.data(), *from = items.data();
    for (u32 j = 0; j < count; ++j) to[at[from[j].*digit - low]++] = from[j];
    items.swap(sorted);
  }

  const i64* radix_;
  std::vector<Item> all_;
  std::vector<u32> before_, counts_;  // lookups of the middle slices before one; for a pass
  u32 count_;
};

// What a thread works with.
struct Work {
  Plan plan;
  std::vector<float> first, middle, flipped, product, gradient, of_first, sum, last, row;
  std::vector<char> has_last;

  // The slice with its rows as long as vectors, [rank, q2, padded].
  const float* padded(const float* slice, const Shape& s) {
    if (s.padded == s.rank) return slice;
    middle.assign(s.rank * s.middle_row, 0);
    copy_rows(middle.data(), s.padded, slice, s.rank, s.rank * s.q2, s.rank);
    return middle.data();
  }

  // Products of the first two cores for some pairs of one slice, [pairs, q1 q2, padded].
  void multiply_pairs(i64 pair, i64 count, const float* core, const float* slice, const Shape& s) {
    room(first, PAIRS * s.first), room(product, PAIRS * s.product);
    for (i64 i = 0; i < count; ++i) {
      copy_floats(first.data() + i * s.first, core + plan.pairs[pair + i].first * s.first, s.first);
    }
    multiply(s.middle_width, product.data(), s.middle_row, first.data(), s.rank, 1, slice, s.middle_row, count * s.q1,
             s.middle_row, s.rank, false);
  }
};

thread_local Work work_of_thread;

// A table's part of each core.
struct Cores {
  const float *first, *middle, *last;
  Cores(const float* core1, const float* core2, const float* core3, const i64* start, const Shape& s)
      : first(core1 + start[0] * s.first), middle(core2 + start[1] * s.middle), last(core3 + start[2] * s.last) {}
};

// A row of a table by the product of its first slices, [q1 q2, rank].
inline void write_row(Work& work, float* to, const float* product, i64 product_row, const float* last, const Shape& s) {
  if (s.q3 == s.q3_padded) {
    multiply(s.q3_width, to, s.q3, product, product_row, 1, last, s.q3, s.q12, s.q3, s.rank, false);
    return;
  }
  room(work.last, s.rank * s.q3_padded), room(work.row, s.q12 * s.q3_padded);
  copy_rows(work.last.data(), s.q3_padded, last, s.q3, s.rank, s.q3);
  multiply(s.q3_width, work.row.data(), s.q3_padded, product, product_row, 1, work.last.data(), s.q3_padded, s.q12,
           s.q3_padded, s.rank, false);
  copy_rows(to, s.q3, work.row.data(), s.q3_padded, s.q12, s.q3);
}

// Reads the rows of the part that this thread has sorted.
void read_part(Work& work, const Cores& cores, const Shape& s, float* out) {
  const Plan& plan = work.plan;
  for (i64 g = 0; g < plan.group_count; ++g) {
    const float* slice = work.padded(cores.middle + plan.groups[g].middle * s.middle, s);
    for (i64 pair = plan.groups[g].pair; pair < plan.groups[g + 1].pair; pair += PAIRS) {
      const i64 count = std::min<i64>(PAIRS, plan.groups[g + 1].pair - pair);
      work.multiply_pairs(pair, count, cores.first, slice, s);
      for (i64 i = 0; i < count; ++i) {
        for (i64 r = plan.pairs[pair + i].row; r < plan.pairs[pair + i + 1].row; ++r) {
          const Plan::Row& row = plan.rows[r];
          float* to = out + plan.items[row.item].position * s.dim;
          write_row(work, to, work.product.data() + i * s.product, s.padded, cores.last + row.last * s.last, s);
          for (i64 k = row.item + 1; k < plan.rows[r + 1].item; ++k) {
            copy_floats(out + plan.items[k].position * s.dim, to, s.dim);
          }
        }
      }
    }
  }
}

void train_slice(float* target, float* total, const float* gradient, i64 width, float lr, float eps) {
  float scale = lr;
  if (total) {
    *total += square<0>(gradient, width) / width;
    scale = lr / (std::sqrt(*total) + eps);
  }
  add<0>(target, gradient, width, -scale);
}

// Gradients of the outer cores' slices in one part, with padded rows: of the first [q1, padded], of the last
// [q3, padded]. What is not marked is not there yet.
struct Sums {
  float *firsts, *lasts;
  char *has_first, *has_last;
};

// Trains the middle slices of the part that this thread has sorted, and sums the gradients of the outer ones.
void train_part(Work& work, const Cores& cores, const Shape& s, const float* gradient, float* target, float* total,
                const Sums& sums, float lr, float eps) {
  const Plan& plan = work.plan;
  const i64 q12 = s.q12, q3 = s.q3;
  const i64 first = s.q1 * s.padded, middle = s.middle_row, last = q3 * s.padded;  // with padded rows
  room(work.gradient, PAIRS * s.product), room(work.sum, s.rank * middle);
  room(work.row, s.dim), room(work.of_first, PAIRS * first), room(work.flipped, middle * s.padded);
  if (s.padded > s.rank) std::fill(work.flipped.begin(), work.flipped.end(), 0.0f);
  for (i64 g = 0; g < plan.group_count; ++g) {
    const i64 at = plan.groups[g].middle;
    const float* slice = work.padded(cores.middle + at * s.middle, s);
    transpose(work.flipped.data(), s.padded, slice, middle, s.rank, middle);
    for (i64 pair = plan.groups[g].pair; pair < plan.groups[g + 1].pair; pair += PAIRS) {
      const i64 count = std::min<i64>(PAIRS, plan.groups[g + 1].pair - pair);
      work.multiply_pairs(pair, count, cores.first, slice, s);
      for (i64 i = 0; i < count; ++i) {
        const float* product = work.product.data() + i * s.product;
        float* of_product = work.gradient.data() + i * s.product;
        for (i64 r = plan.pairs[pair + i].row; r < plan.pairs[pair + i + 1].row; ++r) {
          const Plan::Row& row = plan.rows[r];
          const float* upstream = gradient + plan.items[row.item].position * s.dim;
          if (plan.rows[r + 1].item > row.item + 1) {
            copy_floats(work.row.data(), upstream, s.dim);
            for (i64 k = row.item + 1; k < plan.rows[r + 1].item; ++k) {
              add<0>(work.row.data(), gradient + plan.items[k].position * s.dim, s.dim);
            }
            upstream = work.row.data();
          }
          float* flipped = work.last.data() + row.last * last;
          if (!work.has_last[row.last]) {
            transpose(flipped, s.padded, cores.last + row.last * s.last, q3, s.rank, q3);
            work.has_last[row.last] = true;
          }
          multiply(s.rank_width, of_product, s.padded, upstream, q3, 1, flipped, s.padded, q12, s.padded, q3,
                   r > plan.pairs[pair + i].row);
          multiply(s.rank_width, sums.lasts + row.last * last, s.padded, upstream, 1, q3, product, s.padded, q3,
                   s.padded, q12, sums.has_last[row.last]);
          sums.has_last[row.last] = true;
        }
      }
      multiply(s.middle_width, work.sum.data(), middle, work.first.data(), 1, s.rank, work.gradient.data(), middle,
               s.rank, middle, count * s.q1, pair > plan.groups[g].pair);
      multiply(s.rank_width, work.of_first.data(), s.padded, work.gradient.data(), middle, 1, work.flipped.data(),
               s.padded, count * s.q1, s.padded, middle, false);
      for (i64 i = 0; i < count; ++i) {
        const i64 one = plan.pairs[pair + i].first;
        float *sum = sums.firsts + one * first, *share = work.of_first.data() + i * first;
        sums.has_first[one] ? add<0>(sum, share, first) : copy_floats(sum, share, first);
        sums.has_first[one] = true;
      }
    }
    if (s.padded > s.rank) copy_rows(work.sum.data(), s.rank, work.sum.data(), s.padded, s.rank * s.q2, s.rank);
    train_slice(target + at * s.middle, total ? total + at : nullptr, work.sum.data(), s.middle, lr, eps);
  }
}

// Sums a slice's gradient over the parts, `stride` apart, in the first that has one, which is returned; null if none.
float* sum_of_parts(float* part, const char* has, i64 stride, i64 has_stride, i64 parts, i64 width) {
  float* sum = nullptr;
  for (i64 p = 0; p < parts; ++p, part += stride, has += has_stride) {
    if (!*has) continue;
    sum ? add<0>(sum, part, width) : void(sum = part);
  }
  return sum;
}

// Where a table's slices start in each core.
std::vector<i64> starts(const i64* radices, i64 tables) {
  std::vector<i64> all(3 * (tables + 1), 0);
  for (i64 i = 0; i < 3 * tables; ++i) all[i + 3] = all[i] + radices[i];
  return all;
}

// The first position whose id lies outside its table, or -1; an id below 0 asks for nothing.
i64 outside(const i64* ids, const i64* tables, const i64* radices, i64 cores, i64 table_count, i64 n) {
  i64* const limits = memory<i64, 1>(table_count);
  std::fill_n(limits, table_count, 1);
  for (i64 i = 0; i < cores * table_count; ++i) limits[i / cores] *= radices[i];
  if (!tables) {  // all at once first, which compilers make vectors of
    const i64 samples = samples_of(table_count), piece = samples * table_count;
    const i64* const limit = spread<0>(limits, table_count, samples);
    u64 wrong = 0;
    for (i64 first = 0; first < n; first += piece) {
      const i64* const some = ids + first;
      for (i64 k = 0; k < std::min(piece, n - first); ++k) wrong |= ::outside(std::max<i64>(some[k], 0), limit[k]);
    }
    if (!(wrong >> 63)) return -1;
  }
  for (i64 j = 0; j < n; ++j) {
    const i64 t = tables ? tables[j] : j % table_count;
    if (t < 0 || t >= table_count || ids[j] >= limits[t]) return j;
  }
  return -1;
}

// Into how many parts the lookups of each table are cut: as many for any number of threads.
i64 parts_of(i64 table_count, i64 n) {
  return std::max<i64>(std::min(MOST_PARTS, n / IN_A_PART) / std::max<i64>(table_count, 1), 1);
}

// Calls f(table, part, another) for parts of all tables until none is left, each sorted in this thread's plan.
template <class F>
void each_part(const i64* ids, const i64* tables, const i64* radices, i64 table_count, i64 n, std::atomic<i64>& next,
               F f) {
  Work& work = work_of_thread;
  const i64 parts = parts_of(table_count, n);
  for (i64 u = next++, taken = -1; u < table_count * parts; u = next++) {
    const i64 t = u / parts;
    if (t != taken) work.plan.take(ids, tables, t, table_count, n, radices + 3 * t);
    work.plan.sort(u % parts, parts);
    f(work, t, u % parts, t != taken);
    taken = t;
  }
}

}  // namespace

// out[n, dim] = rows of tables: ids [batch, tables], or ids [n] of tables [n] where `tables` is given. Zeros for an id
// below 0. Returns the first position whose id lies outside its table, or -1; then nothing has been read.
extern "C" i64 tensor_train(const float* core1, const float* core2, const float* core3, const i64* ids,
                            const i64* tables, const i64* radices, float* out, i64 table_count, i64 n, i64 rank, i64 q1,
                            i64 q2, i64 q3, int threads) {
  if (const i64 bad = outside(ids, tables, radices, 3, table_count, n); bad >= 0) return bad;
  const Shape s(rank, q1, q2, q3);
  const std::vector<i64> start = starts(radices, table_count);
  std::atomic<i64> next{0};
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
#pragma omp for schedule(static) nowait
    for (i64 j = 0; j < n; ++j) {
      if (ids[j] < 0) std::fill_n(out + j * s.dim, s.dim, 0.0f);
    }
    each_part(ids, tables, radices, table_count, n, next, [&](Work& work, i64 t, i64, bool) {
      read_part(work, Cores(core1, core2, core3, start.data() + 3 * t, s), s, out);
    });
  }
  return -1;
}

// The same for two cores, whose first may have very many slices: nothing repeats, and memory is asked for early.
extern "C" i64 tensor_train_of_two(const float* core1, const float* core2, const i64* ids, const i64* tables,
                                   const i64* radices, float* out, i64 table_count, i64 n, i64 rank, i64 q1, i64 q2,
                                   int threads) {
  if (const i64 bad = outside(ids, tables, radices, 2, table_count, n); bad >= 0) return bad;
  const Shape s(rank, 1, q1, q2);
  const i64 first = q1 * rank;
  struct Table {
    Divisor by_last;
    const float *first, *last;
  };
  std::vector<Table> all;
  for (i64 t = 0; t < table_count; ++t) {
    all.push_back({Divisor(radices[2 * t + 1]), core1, core2});
    core1 += radices[2 * t] * first, core2 += radices[2 * t + 1] * s.last;
  }
  team(threads, [&, out](int thread, int threads) {
    struct Slices {
      const float *first, *last;
    };
    Slices slices[2][TOGETHER];
    Work& work = work_of_thread;
    const i64 low = n * thread / threads, high = n * (thread + 1) / threads;
    const auto find = [&](i64 from) {
      for (i64 j = from, t = from % table_count; j < std::min(from + TOGETHER, high); ++j) {
        const Table& table = all[tables ? tables[j] : t];
        if (++t == table_count) t = 0;
        const u64 x = std::max<i64>(ids[j], 0), digit = table.by_last(x);
        Slices& at = slices[(j - low) / TOGETHER % 2][(j - low) % TOGETHER];
        at = {table.first + digit * first, table.last + (x - digit * table.by_last.m) * s.last};
        prefetch_span(at.first, first);
      }
    };
    if (low < high) find(low);
    for (i64 j = low; j < high; ++j) {
      if ((j - low) % TOGETHER == 0 && j + TOGETHER < high) find(j + TOGETHER);
      const Slices& at = slices[(j - low) / TOGETHER % 2][(j - low) % TOGETHER];
      float* to = out + j * s.dim;
      ids[j] < 0 ? void(std::fill_n(to, s.dim, 0.0f)) : write_row(work, to, at.first, rank, at.last, s);
    }
  });
  return -1;
}

// target -= lr times the gradients of the cores, or Adagrad with one accumulator a slice where `total`s are given.
// Targets may be the cores themselves: nothing is read after it was written. Returns as `tensor_train` does.
extern "C" i64 train_tensor_train(const float* core1, const float* core2, const float* core3, float* target1,
                                  float* target2, float* target3, float* total1, float* total2, float* total3,
                                  const i64* ids, const i64* tables, const i64* radices, const float* gradient,
                                  i64 table_count, i64 n, i64 rank, i64 q1, i64 q2, i64 q3, float lr, float eps,
                                  int threads) {
  if (const i64 bad = outside(ids, tables, radices, 3, table_count, n); bad >= 0) return bad;
  const Shape s(rank, q1, q2, q3);
  const std::vector<i64> start = starts(radices, table_count);
  const i64 parts = parts_of(table_count, n);
  const i64 first = q1 * s.padded, last = q3 * s.padded, *ends = start.data() + 3 * table_count;
  const i64 in_part = ends[0] * first + ends[2] * last, slices = ends[0] + ends[2];
  static thread_local std::vector<float> own_sums;
  static thread_local std::vector<char> own_has;
  room(own_sums, parts * in_part), own_has.assign(parts * slices, false);
  float* sums = own_sums.data();
  char* has = own_has.data();
  // first the slices of the first core, then those of the last
  const auto sums_of = [&](i64 part, i64 t) {
    float *firsts = sums + part * in_part, *lasts = firsts + ends[0] * first;
    char *has_first = has + part * slices, *has_last = has_first + ends[0];
    return Sums{firsts + start[3 * t] * first, lasts + start[3 * t + 2] * last, has_first + start[3 * t],
                has_last + start[3 * t + 2]};
  };
  std::atomic<i64> next{0};
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    each_part(ids, tables, radices, table_count, n, next, [&](Work& work, i64 t, i64 part, bool another) {
      const Cores cores(core1, core2, core3, start.data() + 3 * t, s);
      const i64 at = start[3 * t + 1];
      if (another) {
        room(work.last, radices[3 * t + 2] * last), work.has_last.assign(radices[3 * t + 2], false);
        if (s.padded > rank) std::fill(work.last.begin(), work.last.end(), 0.0f);
      }
      train_part(work, cores, s, gradient, target2 + at * s.middle, total2 ? total2 + at : nullptr,
                 sums_of(part, t), lr, eps);
    });
    const i64 thread = omp_get_thread_num(), there = omp_get_num_threads();  // maybe fewer than asked for
    Work& work = work_of_thread;
    const Sums all = sums_of(0, 0);
#pragma omp barrier
    for (i64 i = ends[0] * thread / there; i < ends[0] * (thread + 1) / there; ++i) {
      float* sum = sum_of_parts(all.firsts + i * first, all.has_first + i, in_part, slices, parts, first);
      if (!sum) continue;
      if (s.padded > rank) copy_rows(sum, rank, sum, s.padded, q1, rank);
      train_slice(target1 + i * s.first, total1 ? total1 + i : nullptr, sum, s.first, lr, eps);
    }
    room(work.row, s.last);
    for (i64 i = ends[2] * thread / there; i < ends[2] * (thread + 1) / there; ++i) {
      float* sum = sum_of_parts(all.lasts + i * last, all.has_last + i, in_part, slices, parts, last);
      if (!sum) continue;
      transpose(work.row.data(), q3, sum, s.padded, q3, rank);
      train_slice(target3 + i * s.last, total3 ? total3 + i : nullptr, work.row.data(), s.last, lr, eps);
    }
  }
  return -1;
}
