// Ids to slots: out[batch, features, hashes] = ((a x + b) mod (2^61 - 1)) mod size, with a, b, size of each hash.
#include "common.h"

extern "C" void slots(const i64* ids, const i64* a, const i64* b, const i64* sizes, i64* out, i64 batch, i64 features,
                      i64 hashes, int threads) {
  std::vector<Modulo> moduli(sizes, sizes + features * hashes);
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
  for (i64 s = 0; s < batch; ++s) {
    for (i64 k = 0; k < features * hashes; ++k) {
      out[s * features * hashes + k] = moduli[k](multiply_add(a[k], ids[s * features + k / hashes], b[k]));
    }
  }
}
