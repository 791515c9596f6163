// What a machine can do at best, for kernels to be held against: a word sent from core to core, a copy, rows gathered.
#include "common.h"

#include <atomic>

// Returns the nanoseconds that a cache line takes from one core to another, half of a round trip.
extern "C" float core_to_core(i64 rounds) {
  alignas(64) std::atomic<i64> turn{0};
  double seconds = 0;
#pragma omp parallel num_threads(2)
  {
    const i64 me = omp_get_thread_num();
    const bool alone = omp_get_num_threads() < 2;
#pragma omp barrier
    const double start = omp_get_wtime();
    for (i64 i = me; !alone && i < 2 * rounds; i += 2) {
      while (turn.load(std::memory_order_acquire) != i) {
      }
      turn.store(i + 1, std::memory_order_release);
    }
    if (me == 0) seconds = omp_get_wtime() - start;
  }
  return static_cast<float>(seconds * 1e9 / (2 * rounds));
}

extern "C" void copy_all(const float* from, float* to, i64 count, int threads) {
#pragma omp parallel num_threads(threads)
  {
    const i64 me = omp_get_thread_num(), all = omp_get_num_threads(), low = count * me / all;
    std::memcpy(to + low, from + low, (count * (me + 1) / all - low) * sizeof(float));
  }
}

// Floats from places that are known and right, index * step, into memory that is there: a lookup without anything but
// the reading.
extern "C" void gather_limit(const float* table, const u32* index, float* out, i64 step, i64 width, i64 n,
                             int threads) {
  const i64 ahead = step < width ? AHEAD : rows_ahead(width);
  const auto read = [=](auto w, auto past) {
    constexpr int W = decltype(w)::value;
    team(threads, [=](int thread, int threads) {
      for (i64 j = n * thread / threads; j < n * (thread + 1) / threads; ++j) {
        if (j + ahead < n) prefetch_span(table + index[j + ahead] * step, width);
        copy<W, decltype(past)::value>(out + j * width, table + index[j] * step, width);
      }
      if (past) settle();
    });
  };
  with_width(width, [&](auto w) {
    past_caches(out, n * width) ? read(w, std::true_type{}) : read(w, std::false_type{});
  });
}
