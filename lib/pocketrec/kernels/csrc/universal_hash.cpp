// Ids to slots: out[batch, features, hashes] = ((a x + b) mod (2^61 - 1)) mod size, with every hash's a, b and size in
// terms[3, features, hashes].
#include "common.h"

extern "C" void slots(const i64* ids, const i64* terms, i64* out, i64 batch, i64 features, i64 hashes, int threads) {
  team(threads, [=](int thread, int threads) {
    const i64 columns = features * hashes, most = std::min(batch, samples_of(columns));
    const Slots slots(terms, columns, most);
    in_pieces(batch, most, thread, threads, [&](i64 first, i64 samples) {
      i64* const to = out + first * columns;
      for (i64 k = 0; k < samples * features; ++k) std::fill_n(to + k * hashes, hashes, ids[first * features + k]);
      slots(to, samples);
    });
  });
}
