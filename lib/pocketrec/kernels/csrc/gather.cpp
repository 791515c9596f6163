// Rows of a table: read, or trained in place; and ids checked against their tables.
//
// Training gives each row to one thread, by a hash of its number, which meets its gradients in an order that the
// batch alone decides: the same bits for any number of threads.
#include "common.h"

namespace {

// ids [batch, features]: the first position where 0 <= id < limits[feature] does not hold, or -1; widened on the way
template <class Id>
i64 check(const Id* ids, const i64* limits, i64* wide, i64 batch, i64 features, int threads) {
  i64 first = batch * features;
#pragma omp parallel for num_threads(threads) reduction(min : first) if (threads > 1)
  for (i64 b = 0; b < batch; ++b) {
    const Id* row = ids + b * features;
    bool bad = false;
    for (i64 f = 0; f < features; ++f) {
      if (wide) wide[b * features + f] = row[f];
      bad |= static_cast<u64>(static_cast<i64>(row[f])) >= static_cast<u64>(limits[f]);
    }
    if (!bad) continue;
    for (i64 f = 0; f < features; ++f) {
      const bool outside = static_cast<u64>(static_cast<i64>(row[f])) >= static_cast<u64>(limits[f]);
      if (outside) first = std::min(first, b * features + f);
    }
  }
  return first < batch * features ? first : -1;
}

inline int owner(i64 row, int threads) {
  return static_cast<int>((static_cast<u64>(row) * 0x9E3779B97F4A7C15u >> 32) * threads >> 32);
}

// The positions [0, n) whose rows belong to this thread. Every thread reads the whole index, and so finds by itself
// whether some of it lies outside the table; then no position belongs to any.
const u32* mine(const i64* index, i64 rows, i64 n, i64& count, bool& outside) {
  u32* const list = positions(n + 1);
  const int thread = omp_get_thread_num(), threads = omp_get_num_threads();
  count = 0;
  for (i64 j = 0; j < n; ++j) {
    list[count] = static_cast<u32>(j);
    count += owner(index[j], threads) == thread;  // no branch: it could not be foreseen
    outside |= static_cast<u64>(index[j]) >= static_cast<u64>(rows);
  }
  if (outside) count = 0;
  return list;
}

}  // namespace

extern "C" i64 check_int32(const std::int32_t* ids, const i64* limits, i64* wide, i64 batch, i64 features, int threads) {
  return check(ids, limits, wide, batch, features, threads);
}

extern "C" i64 check_int64(const i64* ids, const i64* limits, i64 batch, i64 features, int threads) {
  return check(ids, limits, nullptr, batch, features, threads);
}

// Returns the first position whose index lies outside the table, or -1; then nothing has been read.
extern "C" i64 gather(const float* table, const i64* index, float* out, i64 rows, i64 width, i64 n, int threads) {
  bool outside = false;
#pragma omp parallel for num_threads(threads) reduction(| : outside) if (threads > 1)
  for (i64 j = 0; j < n; ++j) outside |= static_cast<u64>(index[j]) >= static_cast<u64>(rows);
  if (outside) return check(index, &rows, nullptr, n, 1, 1);
  with_width(width, [&](auto w) {
    constexpr int W = decltype(w)::value;
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
    for (i64 j = 0; j < n; ++j) {
      if (j + AHEAD < n) prefetch(table + index[j + AHEAD] * width, width);
      copy<W>(out + j * width, table + index[j] * width, width);
    }
  });
  return -1;
}

// table[row] -= lr * gradient, in the order of the batch; total and eps are not used. Returns as `gather` does; then
// nothing has been written.
extern "C" i64 sgd(float* table, float*, const i64* index, const float* gradient, i64 rows, i64 width, i64 n, float lr,
                   float, int threads) {
  bool outside = false;
  with_width(width, [&](auto w) {
    constexpr int W = decltype(w)::value;
#pragma omp parallel num_threads(threads) reduction(| : outside) if (threads > 1)
    {
      i64 count;
      const u32* list = mine(index, rows, n, count, outside);
      for (i64 k = 0; k < count; ++k) {
        if (k + AHEAD < count) prefetch<1>(table + index[list[k + AHEAD]] * width, width);
        add<W>(table + index[list[k]] * width, gradient + list[k] * width, width, -lr);
      }
    }
  });
  return outside ? check(index, &rows, nullptr, n, 1, 1) : -1;
}

// Adagrad with one accumulator a row, on the summed gradient of each row. Returns as `sgd` does.
extern "C" i64 adagrad(float* table, float* total, const i64* index, const float* gradient, i64 rows, i64 width, i64 n,
                       float lr, float eps, int threads) {
  bool outside = false;
  with_width(width, [&](auto w) {
    constexpr int W = decltype(w)::value;
#pragma omp parallel num_threads(threads) reduction(| : outside) if (threads > 1)
    {
      static thread_local Groups groups;
      static thread_local std::vector<float> sum;
      i64 count;
      const u32* list = mine(index, rows, n, count, outside);
      groups.start(count);
      for (i64 k = 0; k < count; ++k) groups.add(index[list[k]], list[k]);
      sum.resize(width);
      for (i64 k = 0; k < groups.size(); ++k) {
        if (k + AHEAD < groups.size()) {
          prefetch<1>(table + groups.key(k + AHEAD) * width, width);
          prefetch<1>(total + groups.key(k + AHEAD), 1);
        }
        std::fill(sum.begin(), sum.end(), 0.0f);
        groups.each(k, [&](i64 j) { add<W>(sum.data(), gradient + j * width, width); });
        const i64 row = groups.key(k);
        total[row] += square<W>(sum.data(), width) / width;
        add<W>(table + row * width, sum.data(), width, -lr / (std::sqrt(total[row]) + eps));
      }
    }
  });
  return outside ? check(index, &rows, nullptr, n, 1, 1) : -1;
}
