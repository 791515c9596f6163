// Rows of a table: read, or trained in place; and ids checked against their tables.
//
// Training gives each row to one thread, by a hash of its number, which meets its gradients in an order that the
// batch alone decides: the same bits for any number of threads.
#include "common.h"

namespace {

constexpr i64 PIECE = 2048;  // lookups whose ids are checked before the first of them is read

// out = table[index], which lies inside the table
void read(const float* table, const i64* index, float* out, i64 width, i64 n) {
  for (i64 j = 0; j < std::min(rows_ahead(width), n); ++j) prefetch(table + index[j] * width, width);
  with_width(width, [&](auto w) { copy_rows<decltype(w)::value>(out, table, index, width, n, 0); });
}

// The positions [0, n) whose rows belong to this thread, by a hash of the row. Every thread reads the whole index, and
// so finds by itself whether some of it lies outside the table; then no position belongs to any, and `right` becomes
// false.
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
extern "C" i64 check_ids(const void* at, const i64* limits, i64* wide, i64 batch, i64 features, int bytes,
                         int threads) {
  const Ids ids{at, limits, features, bytes};
  std::atomic<bool> right{true};
  team(threads, [=, &right](int thread, int threads) {
    const i64 most = std::min(batch, samples_of(features, PIECE));
    const Ids tiled = ids.spread(most);
    in_pieces(batch, most, thread, threads, [&](i64 first, i64 samples) {
      i64* const to = wide ? wide + first * features : memory<i64>(samples * features);
      if (!tiled.read(first, samples, to)) right = false;
    });
  });
  for (i64 k = 0; k < batch * features && !right; ++k) {
    if (ids.wrong(k)) return k;
  }
  return -1;
}

// out = table[index]. Returns the first position whose index lies outside the table, or -1.
extern "C" i64 gather(const float* table, const i64* index, float* out, i64 rows, i64 width, i64 n, int threads) {
  std::atomic<bool> right{true};
  team(threads, [=, &right](int thread, int threads) {
    in_pieces(n, PIECE, thread, threads, [&](i64 first, i64 count) {
      if (!inside(index + first, rows, count)) {
        right = false;
      } else {
        read(table, index + first, out + first * width, width, count);
      }
    });
  });
  return right ? -1 : first_outside(index, rows, n);
}

// The same for tables that are stacked, by the ids of each: index[batch, features] = starts + ids, or starts + slots
// where `hash`, the terms of `Slots`, is not null; it is not kept if it is null. Returns the first position whose id
// lies outside its table, or whose table lies outside, or -1.
extern "C" i64 gather_tables(const float* table, const void* at, const i64* limits, const i64* starts, const i64* hash,
                             i64* index, float* out, i64 rows, i64 width, i64 batch, i64 features, int bytes,
                             int threads) {
  const Stacked tables{{at, limits, features, bytes}, starts, hash, rows};
  std::atomic<bool> right{true};
  team(threads, [=, &right](int thread, int threads) {
    const i64 most = std::min(batch, samples_of(features, PIECE));
    const Stacked::Placing placing(tables, most);
    in_pieces(batch, most, thread, threads, [&](i64 first, i64 samples) {
      i64* const to = index ? index + first * features : memory<i64>(samples * features);
      if (!placing.place(first, samples, to)) {
        right = false;
      } else {
        read(table, to, out + first * features * width, width, samples * features);
      }
    });
  });
  return right ? -1 : tables.first_wrong(batch);
}

// table[row] -= lr * gradient, in the order of the batch; total and eps are not used. Returns as `gather` does; then
// nothing has been written.
extern "C" i64 sgd(float* table, float*, const i64* index, const float* gradient, i64 rows, i64 width, i64 n, float lr,
                   float, int threads) {
  std::atomic<bool> right{true};
  with_width(width, [&](auto w) {
    constexpr int W = decltype(w)::value;
    team(threads, [=, &right](int thread, int threads) {
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
    team(threads, [=, &right](int thread, int threads) {
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
