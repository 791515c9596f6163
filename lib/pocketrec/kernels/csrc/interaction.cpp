// The dot products of all pairs of a sample's vectors, and the gradient of these vectors.
//
// A sample at a time, which stays in the first cache. Forward its vectors are turned, so that strips of all products
// come from rows of vectors; backward the gradients of the products become a symmetric matrix, which multiplies them.
// The same bits for any number of threads.
#include "matrices.h"

namespace {

constexpr i64 LINE = sizeof(Line) / sizeof(float);  // rows of products are padded to whole lines

// The vectors of all samples: a first one each, or none, and those of the features.
template <class T>
struct Vectors {
  T *first, *others;
  i64 features, width;

  i64 count() const { return features + (first != nullptr); }
  i64 pairs() const { return count() * (count() - 1) / 2; }
  T* other(i64 sample) const { return others + sample * features * width; }
};

// out[pairs] = what lies below the diagonal of `products`, row by row.
void pack(float* out, i64 pairs, const float* products, i64 side, i64 count) {
  i64 at = 0;
  for (i64 row = 1; row < count; at += row++) {
    if (at + round_up(row, LINE) <= pairs) {  // what is too much later rows write over
      for (i64 n = 0; n < row; n += LINE) {
        *reinterpret_cast<Line*>(out + at + n) = *reinterpret_cast<const Line*>(products + row * side + n);
      }
    } else {
      copy<0>(out + at, products + row * side, row);
    }
  }
}

// to[count, count] = the symmetric matrix of which `gradient` is what lies below the diagonal, with a diagonal of 0.
void unpack(float* to, const float* gradient, i64 count) {
  for (i64 row = 0; row < count; ++row) {
    for (i64 n = 0; n < row; ++n) to[row * count + n] = to[n * count + row] = *gradient++;
    to[row * count + row] = 0;
  }
}

}  // namespace

// out[batch, pairs] = the products v_i v_j, i > j, row by row, of v = (first, others): first[batch, width] or null,
// others[batch, features, width].
extern "C" void pair_vectors(const float* first, const float* others, float* out, i64 batch, i64 features, i64 width,
                             int threads) {
  const Vectors<const float> vectors{first, others, features, width};
  team(threads, [=](int thread, int threads) {
    const i64 count = vectors.count(), side = round_up(count, LINE), own = count - features;
    float *const turned = memory<float, 0>(width * side), *const products = memory<float, 1>(count * side);
    in_pieces(batch, 1, thread, threads, [&](i64 sample, i64) {
      for (i64 k = 0; k < own * width; ++k) turned[k * side] = vectors.first[sample * width + k];
      transpose(turned + own, side, vectors.other(sample), width, features, width);
      for (i64 column = 0; column + 1 < count; column += LINE) {
        multiply(WIDEST, products + (column + 1) * side + column, side, turned + column + 1, 1, side, turned + column,
                 side, count - column - 1, LINE, width, false);
      }
      pack(out + sample * vectors.pairs(), vectors.pairs(), products, side, count);
    });
  });
}

// The gradients of both, by that of the products.
extern "C" void pair_gradients(const float* gradient, const float* first, const float* others, float* of_first,
                               float* of_others, i64 batch, i64 features, i64 width, int threads) {
  const Vectors<const float> vectors{first, others, features, width};
  const Vectors<float> out{of_first, of_others, features, width};
  team(threads, [=](int thread, int threads) {
    const i64 count = vectors.count(), own = count - features;
    const i64 vector = vector_width(width), padded = round_up(width, vector);
    float *const weights = memory<float, 0>(count * count), *const read = memory<float, 1>(count * padded);
    float* const found = memory<float, 2>(count * padded);
    with_width(width, [&](auto w) {
      constexpr int W = decltype(w)::value;
      in_pieces(batch, 1, thread, threads, [&](i64 sample, i64) {
        unpack(weights, gradient + sample * vectors.pairs(), count);
        if (own) copy<W>(read, vectors.first + sample * width, width);
        for (i64 f = 0; f < features; ++f) copy<W>(read + (own + f) * padded, vectors.other(sample) + f * width, width);
        multiply(vector, found, padded, weights, count, 1, read, padded, count, padded, count, false);
        if (own) copy<W>(out.first + sample * width, found, width);
        for (i64 f = 0; f < features; ++f) copy<W>(out.other(sample) + f * width, found + (own + f) * padded, width);
      });
    });
  });
}
