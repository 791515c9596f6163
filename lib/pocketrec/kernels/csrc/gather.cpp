// Rows of a table: read, or trained in place; and ids checked against their tables.
//
// Training gives each row to one thread, by a hash of its number, which meets its gradients in an order that the
// batch alone decides: the same bits for any number of threads.
#include "common.h"

namespace {

constexpr i64 PIECE = 2048;  // lookups whose ids are checked before the first of them is read

bool inside(const i64* index, i64 rows, i64 n) {
  u64 wrong = 0;
  for (i64 j = 0; j < n; ++j) wrong |= outside(index[j], rows);
  return !(wrong >> 63);
}

// The first position whose index lies outside the table, or -1.
i64 first_outside(const i64* index, i64 rows, i64 n) {
  for (i64 j = 0; j < n; ++j) {
    if (!inside(index + j, rows, 1)) return j;
  }
  return -1;
}

template <int W>
void read(const float* table, const i64* index, float* out, i64 width, i64 n) {
  const i64 ahead = rows_ahead(width);
  for (i64 j = 0; j < std::min(ahead, n); ++j) prefetch(table + index[j] * width, width);
  for (i64 j = 0; j < n; ++j) {
    if (j + ahead < n) prefetch(table + index[j + ahead] * width, width);
    copy<W>(out + j * width, table + index[j] * width, width);
  }
}

// out = table[index], in pieces, where `place(first, samples)` returns the index of a piece [samples, features], or null if
// it has none. Returns whether all of the index lies inside the table.
template <class Place>
bool read_pieces(const float* table, float* out, i64 rows, i64 width, i64 batch, i64 features, int threads, Place place) {
  std::atomic<bool> right{true};
  in_pieces(batch, samples_of(features, PIECE), threads, [&](i64 first, i64 samples) {
    const i64* index = place(first, samples);
    const i64 n = samples * features;
    if (!index || !inside(index, rows, n)) right = false;
    if (!right) return;
    float* const to = out + first * features * width;
    with_width(width, [&](auto w) { read<decltype(w)::value>(table, index, to, width, n); });
  });
  return right;
}

// The positions [0, n) whose rows belong to this thread, by a hash of the row. Every thread reads the whole index, and so
// finds by itself whether some of it lies outside the table; then no position belongs to any, and `right` becomes false.
const u32* mine(const i64* index, i64 rows, i64 n, int thread, int threads, i64& count, std::atomic<bool>& right) {
  unsigned char* const flags = memory<unsigned char>(n);
  u32* const list = memory<u32>(n + 16);
  if (!inside(index, rows, n)) {
    right = false;
    count = 0;
    return list;
  }
  for (i64 j = 0; j < n; ++j) {
    flags[j] = (static_cast<u64>(index[j]) * 0x9E3779B97F4A7C15u >> 32) * threads >> 32 == static_cast<u64>(thread);
  }
  count = flagged(flags, n, list);
  return list;
}

}  // namespace

// wide = ids, unless it is null. Returns the first position where 0 <= id < limits[feature] does not hold, or -1.
extern "C" i64 check_ids(const void* at, const i64* limits, i64* wide, i64 batch, i64 features, int bytes, int threads) {
  const i64 most = std::min(batch, samples_of(features, PIECE));
  const Ids ids{at, spread<1>(limits, features, most), features, bytes};
  std::atomic<bool> right{true};
  in_pieces(batch, most, threads, [&](i64 first, i64 samples) {
    if (!ids.read(first, samples, wide ? wide + first * features : memory<i64>(samples * features))) right = false;
  });
  for (i64 k = 0; !right; ++k) {
    if (ids.wrong(k)) return k;
  }
  return -1;
}

// out = table[index]. Returns the first position whose index lies outside the table, or -1.
extern "C" i64 gather(const float* table, const i64* index, float* out, i64 rows, i64 width, i64 n, int threads) {
  const auto place = [&](i64 first, i64) { return index + first; };
  return read_pieces(table, out, rows, width, n, 1, threads, place) ? -1 : first_outside(index, rows, n);
}

// The same for tables that are stacked, by the ids of each: index[batch, features] = starts + ids, which is not kept if it
// is null. Returns the first position whose id lies outside its table, or whose table lies outside, or -1.
extern "C" i64 gather_tables(const float* table, const void* at, const i64* limits, const i64* starts, i64* index,
                             float* out, i64 rows, i64 width, i64 batch, i64 features, int bytes, int threads) {
  const i64 most = std::min(batch, samples_of(features, PIECE));
  const Ids ids{at, spread<1>(limits, features, most), features, bytes};
  starts = spread<2>(starts, features, most);
  const auto place = [&](i64 first, i64 samples) -> const i64* {
    i64* __restrict const to = index ? index + first * features : memory<i64>(samples * features);
    if (!ids.read(first, samples, to)) return nullptr;
    for (i64 k = 0; k < samples * features; ++k) to[k] += starts[k];
    return to;
  };
  if (read_pieces(table, out, rows, width, batch, features, threads, place)) return -1;
  i64 k = 0;
  while (!ids.wrong(k) && !(outside(starts[k % features] + ids[k], rows) >> 63)) ++k;
  return k;
}

// table[row] -= lr * gradient, in the order of the batch; total and eps are not used. Returns as `gather` does; then
// nothing has been written.
extern "C" i64 sgd(float* table, float*, const i64* index, const float* gradient, i64 rows, i64 width, i64 n, float lr,
                   float, int threads) {
  std::atomic<bool> right{true};
  with_width(width, [&](auto w) {
    constexpr int W = decltype(w)::value;
    team(threads, [&](int thread, int threads) {
      i64 count;
      const i64 ahead = rows_ahead(width);
      const u32* list = mine(index, rows, n, thread, threads, count, right);
      for (i64 k = 0; k < count; ++k) {
        if (k + ahead < count) {
          prefetch<1>(table + index[list[k + ahead]] * width, width);
          prefetch(gradient + list[k + ahead] * width, width);
        }
        add<W>(table + index[list[k]] * width, gradient + list[k] * width, width, -lr);
      }
    });
  });
  return right ? -1 : first_outside(index, rows, n);
}

// Adagrad with one accumulator a row, on the summed gradient of each row. Returns as `sgd` does.
extern "C" i64 adagrad(float* table, float* total, const i64* index, const float* gradient, i64 rows, i64 width, i64 n,
                       float lr, float eps, int threads) {
  std::atomic<bool> right{true};
  with_width(width, [&](auto w) {
    constexpr int W = decltype(w)::value;
    team(threads, [&](int thread, int threads) {
      static thread_local Groups groups;
      float* const sum = memory<float>(width);
      i64 count;
      const u32* list = mine(index, rows, n, thread, threads, count, right);
      groups.start(count);
      for (i64 k = 0; k < count; ++k) groups.add(index[list[k]], list[k]);
      for (i64 k = 0; k < groups.size(); ++k) {
        if (k + AHEAD < groups.size()) {
          prefetch<1>(table + groups.key(k + AHEAD) * width, width);
          prefetch<1>(total + groups.key(k + AHEAD), 1);
        }
        std::fill(sum, sum + width, 0.0f);
        groups.each(k, [&](i64 j) { add<W>(sum, gradient + j * width, width); });
        const i64 row = groups.key(k);
        total[row] += square<W>(sum, width) / width;
        add<W>(table + row * width, sum, width, -lr / (std::sqrt(total[row]) + eps));
      }
    });
  });
  return right ? -1 : first_outside(index, rows, n);
}
