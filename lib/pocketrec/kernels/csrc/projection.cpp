// Rows of stacked tables times the matrix of their table: read, or trained in place.
//
// A piece of the batch is read feature by feature, so that a matrix serves many rows from the first cache. Training
// gives each feature to one thread, which sums the gradients of every row that occurs before it multiplies anything:
// the same bits for any number of threads, of which no more are busy than there are features.
#include "matrices.h"

namespace {

constexpr i64 PIECE = 2048;   // lookups whose ids are checked before the first of them is read
constexpr i64 TOGETHER = 32;  // rows that are trained together

struct Training {
  const float *table, *gradient, *matrices;
  const i64* index;
  float *target, *total, *matrix_gradients;
  i64 width, batch, features, columns;
  float lr, eps;

  // Trains the rows of one feature, and sums the gradient of its matrix.
  void operator()(i64 feature) const {
    static thread_local Groups groups;
    const i64 vector = vector_width(width), padded = round_up(width, vector);
    float *const read = memory<float, 0>(TOGETHER * padded), *const given = memory<float, 1>(TOGETHER * columns);
    float *const moved = memory<float, 2>(TOGETHER * padded), *const turned = memory<float, 3>(columns * padded);
    float* const outer = memory<float, 4>(columns * padded);
    const i64 matrix = feature * width * columns;
    transpose(turned, padded, matrices + matrix, columns, width, columns);
    std::fill(outer, outer + columns * padded, 0.0f);
    groups.start(batch);
    for (i64 s = 0; s < batch; ++s) {
      groups.add(index[s * features + feature], static_cast<u32>(s));
      prefetch(gradient + (s * features + feature) * columns, columns);
    }
    for (i64 first = 0; first < groups.size(); first += TOGETHER) {
      const i64 count = std::min(TOGETHER, groups.size() - first);
      for (i64 k = first + count; k < std::min(first + count + TOGETHER, groups.size()); ++k) {
        prefetch<1>(target + groups.key(k) * width, width);
        if (target != table) prefetch(table + groups.key(k) * width, width);
        if (total) prefetch<1>(total + groups.key(k), 1);
      }
      std::fill(given, given + count * columns, 0.0f);
      with_width(columns, [&](auto w) {
        for (i64 k = 0; k < count; ++k) {
          groups.each(first + k, [&](i64 s) {
            add<decltype(w)::value>(given + k * columns, gradient + (s * features + feature) * columns, columns);
          });
        }
      });
      for (i64 k = 0; k < count; ++k) copy<0>(read + k * padded, table + groups.key(first + k) * width, width);
      multiply(vector, outer, padded, given, 1, columns, read, padded, columns, padded, count, true);
      multiply(vector, moved, padded, given, columns, 1, turned, padded, count, padded, columns, false);
      with_width(width, [&](auto w) {
        constexpr int W = decltype(w)::value;
        for (i64 k = 0; k < count; ++k) {
          const i64 row = groups.key(first + k);
          const float* const change = moved + k * padded;
          if (total) total[row] += square<W>(change, width) / width;
          add<W>(target + row * width, change, width, total ? -lr / (std::sqrt(total[row]) + eps) : -lr);
        }
      });
    }
    transpose(matrix_gradients + matrix, columns, outer, padded, columns, width);
  }
};

}  // namespace

// out[batch, features, columns] = table[index] times matrices[features, width, columns], by index[batch, features] as
// `gather_tables` finds it, which is not kept if it is null. Returns as that does.
extern "C" i64 project(const float* table, const void* at, const i64* limits, const i64* starts, const i64* hash,
                       const float* matrices, i64* index, float* out, i64 rows, i64 width, i64 batch, i64 features,
                       i64 columns, int bytes, int threads) {
  const Stacked tables{{at, limits, features, bytes}, starts, hash, rows};
  const i64 vector = vector_width(columns), padded = round_up(columns, vector);
  std::vector<float> wide(padded > columns ? features * width * padded : 0);
  for (i64 k = 0; k < features * width && padded > columns; ++k) {
    copy<0>(wide.data() + k * padded, matrices + k * columns, columns);
  }
  const float* const factors = padded > columns ? wide.data() : matrices;
  std::atomic<bool> right{true};
  team(threads, [=, &right](int thread, int threads) {
    const i64 most = std::min(batch, round_up(samples_of(features, PIECE), 8));  // of 8 rows products come fastest
    const Stacked::Placing placing(tables, most);
    i64 *const placed = memory<i64, 0>(most * features), *const by_feature = memory<i64, 1>(most * features);
    float *const read = memory<float, 0>(most * width), *const product = memory<float, 1>(most * padded);
    in_pieces(batch, most, thread, threads, [&](i64 first, i64 samples) {
      i64* const to = index ? index + first * features : placed;
      if (!placing.place(first, samples, to)) {
        right = false;
        return;
      }
      for (i64 f = 0; f < features; ++f) {
        for (i64 s = 0; s < samples; ++s) by_feature[f * samples + s] = to[s * features + f];
      }
      for (i64 f = 0; f < features; ++f) {
        const i64 *const own = by_feature + f * samples, more = (features - f - 1) * samples;
        with_width(width, [&](auto w) { copy_rows<decltype(w)::value>(read, table, own, width, samples, more); });
        float* const row = out + (first * features + f) * columns;
        const float* const matrix = factors + f * width * padded;
        if (padded == columns) {
          multiply(vector, row, features * columns, read, width, 1, matrix, columns, samples, columns, width, false);
          continue;
        }
        multiply(vector, product, padded, read, width, 1, matrix, padded, samples, padded, width, false);
        for (i64 s = 0; s < samples; ++s) copy<0>(row + s * features * columns, product + s * padded, columns);
      }
    });
  });
  return right ? -1 : tables.first_wrong(batch);
}

// target[row] -= lr times the gradient of table[row], which is the table's own where both are one, and
// matrix_gradients[features, width, columns] = those of the matrices; row-wise Adagrad unless total is null. No two
// features may read one row. Returns the first position whose index lies outside the table, or -1; then nothing has
// been written.
extern "C" i64 train_projected(const float* table, float* target, float* total, const i64* index,
                               const float* gradient, const float* matrices, float* matrix_gradients, i64 rows,
                               i64 width, i64 batch, i64 features, i64 columns, float lr, float eps, int threads) {
  if (!inside(index, rows, batch * features)) return first_outside(index, rows, batch * features);
  const Training train{table, gradient, matrices, index, target, total, matrix_gradients, width, batch, features,
                       columns, lr, eps};
  std::atomic<i64> next{0};
  team(threads, [=, &next](int, int) {
    for (i64 feature = next++; feature < features; feature = next++) train(feature);
  });
  return -1;
}
