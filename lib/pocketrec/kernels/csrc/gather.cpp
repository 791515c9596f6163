// Rows of a table: read, or trained in place; and ids checked against their tables.
//
// Training gives each row to one thread, by a hash of its number, which meets its gradients in an order that the
// batch alone decides: the same bits for any number of threads. To read moves bytes: rows of any numbers pass for half
// or twice as many floats.
#include "common.h"

#include <utility>

namespace {

constexpr i64 PIECE = 2048;  // lookups whose ids are checked before the first of them is read
constexpr int SOON = 8;      // how many gradients of one row ahead memory is asked for

// out = table[index], which lies inside the table; `past` caches
void read(const float* table, const i64* index, float* out, i64 width, i64 n, bool past) {
  for (i64 j = 0; j < std::min(rows_ahead(width), n); ++j) prefetch(table + index[j] * width, width);
  with_width(width, [&](auto w) {
    constexpr int W = decltype(w)::value;
    past ? copy_rows<W, true>(out, table, index, width, n, 0) : copy_rows<W>(out, table, index, width, n, 0);
  });
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

// table[row] -= lr * gradient for the lookups of a list, in its order
template <int W, class Row, class Gradient>
void descend(Row* table, const i64* index, const Gradient* gradient, i64 width, const u32* list, i64 count, float lr) {
  const i64 ahead = rows_ahead(width);
  for (i64 k = 0; k < count; ++k) {
    if (k + ahead < count) {
      prefetch<1>(table + index[list[k + ahead]] * width, width);
      prefetch(gradient + list[k + ahead] * width, width);
    }
    add<W>(table + index[list[k]] * width, gradient + list[k] * width, width, -lr);
  }
}

constexpr u32 NONE = ~u32(0), DONE = NONE - 1;

// after[k] = the next of the lookups of a list that has the row of lookup k, or NONE.
u32* following(const i64* index, const u32* list, i64 count) {
  u64 places = 64;
  while (places < 2 * static_cast<u64>(count)) places *= 2;
  u32* const found = memory<u32, 1>(places);  // the lookup of each row, by open addressing
  u32* const after = memory<u32, 2>(count);
  std::fill(found, found + places, NONE);
  for (i64 k = count - 1; k >= 0; --k) {
    const i64 row = index[list[k]];
    u64 at = (static_cast<u64>(row) * 0x9E3779B97F4A7C15u >> 20) & (places - 1);
    while (found[at] != NONE && index[list[found[at]]] != row) at = (at + 1) & (places - 1);
    after[k] = found[at];
    found[at] = static_cast<u32>(k);
  }
  return after;
}

// Trains the row of each lookup of a list once: by the sum of its gradients in float32, so that it is rounded once.
template <int W, class Row, class Gradient>
void train_once(Row* table, float* total, const i64* index, const Gradient* gradient, i64 width, const u32* list,
                i64 count, float lr, float eps) {
  u32* const after = following(index, list, count);
  float* const sum = memory<float>(width);
  for (i64 k = 0; k < count; ++k) {
    // for many at once: so the pages of all are looked up together, and not each before the next is asked for
    for (i64 j = k + AHEAD; k % AHEAD == 0 && j < std::min(k + 2 * AHEAD, count); ++j) {
      prefetch<1>(table + index[list[j]] * width, width);
      prefetch(gradient + list[j] * width, width);
      if (total) prefetch<1>(total + index[list[j]], 1);
    }
    if (after[k] == DONE) continue;
    const i64 row = index[list[k]];
    if (after[k] == NONE && !total) {
      add<W>(table + row * width, gradient + list[k] * width, width, -lr);
      continue;
    }
    std::fill(sum, sum + width, 0.0f);
    u32 soon = after[k];
    const auto look_ahead = [&] {
      if (soon == NONE) return;
      prefetch(gradient + list[soon] * width, width);
      soon = after[soon];
    };
    for (int j = 0; j < SOON; ++j) look_ahead();
    for (u32 j = static_cast<u32>(k); j != NONE; j = std::exchange(after[j], DONE)) {
      look_ahead();
      add<W>(sum, gradient + list[j] * width, width);
    }
    if (total) total[row] += square<W>(sum, width) / width;
    add<W>(table + row * width, sum, width, total ? -lr / (std::sqrt(total[row]) + eps) : -lr);
  }
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
  const bool past = past_caches(out, n * width);
  team(threads, [=, &right](int thread, int threads) {
    in_pieces(n, PIECE, thread, threads, [&](i64 first, i64 count) {
      if (!inside(index + first, rows, count)) {
        right = false;
      } else {
        read(table, index + first, out + first * width, width, count, past);
      }
    });
    if (past) settle();
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
  const bool past = past_caches(out, batch * features * width);
  std::atomic<bool> right{true};
  team(threads, [=, &right](int thread, int threads) {
    const i64 most = std::min(batch, samples_of(features, PIECE));
    const Stacked::Placing placing(tables, most);
    in_pieces(batch, most, thread, threads, [&](i64 first, i64 samples) {
      i64* const to = index ? index + first * features : memory<i64>(samples * features);
      if (!placing.place(first, samples, to)) {
        right = false;
      } else {
        read(table, to, out + first * features * width, width, samples * features, past);
      }
    });
    if (past) settle();
  });
  return right ? -1 : tables.first_wrong(batch);
}

// Trains the rows of a table, floats or `Bfloat16` (`row_bytes`), by gradients of either (`gradient_bytes`): SGD where
// total is null, else Adagrad with one accumulator a row, on the summed gradient of each row. Returns as `gather` does;
// then nothing has been written.
extern "C" i64 train(void* table, float* total, const i64* index, const void* gradient, i64 rows, i64 width, i64 n,
                     float lr, float eps, int row_bytes, int gradient_bytes, int threads) {
  std::atomic<bool> right{true};
  with_numbers(row_bytes, [&](auto row) {
    with_numbers(gradient_bytes, [&](auto number) {
      using Row = decltype(row);
      Row* const to = static_cast<Row*>(table);
      const auto* from = static_cast<const decltype(number)*>(gradient);
      with_width(width, [&](auto w) {
        constexpr int W = decltype(w)::value;
        team(threads, [=, &right](int thread, int threads) {
          i64 count;
          const u32* list = mine(index, rows, n, thread, threads, count, right);
          if (std::is_same_v<Row, float> && !total) {
            descend<W>(to, index, from, width, list, count, lr);
          } else {
            train_once<W>(to, total, index, from, width, list, count, lr, eps);
          }
        });
      });
    });
  });
  return right ? -1 : first_outside(index, rows, n);
}
