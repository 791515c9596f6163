// Blocks of one array: placed by a hash, read, or trained in place.
//
// A block starts somewhere in a window [base, base + size) of the array and wraps around there. There is one window
// for all features, or one each. Training gives each thread a range of the array: it passes over all blocks and adds
// what lies in its range, in an order that the batch alone decides: the same bits for any number of threads.
#include "common.h"

namespace {

enum Hash { UNIVERSAL, MULTIPLY_SHIFT, AUTHORS };
constexpr u64 AUTHORS_PRIME = 2038074743;
constexpr i64 LINE = 16;   // floats that are trained together where the array is too large to be passed over

struct Windows {
  const i64 *sizes, *bases;
  i64 count;
  i64 size(i64 feature) const { return sizes[count > 1 ? feature : 0]; }
  i64 end(i64 feature) const { return bases[count > 1 ? feature : 0] + size(feature); }
};

// Calls f(j, end, size) for every block of some samples, with the window it lies in.
template <class F>
inline void each_block(const Windows& windows, i64 samples, i64 features, i64 blocks, F f) {
  if (windows.count == 1) {
    const i64 end = windows.end(0), size = windows.size(0);
    for (i64 j = 0; j < samples * features * blocks; ++j) f(j, end, size);
    return;
  }
  for (i64 j = 0; j < samples * features * blocks;) {
    for (i64 k = 0; k < features; ++k) {
      for (i64 c = 0; c < blocks; ++c) f(j++, windows.end(k), windows.size(k));
    }
  }
}

// Calls f(place in the block, place in the array, length) for each piece of a block: more than one where it wraps,
// none where it starts behind its window.
template <class F>
inline void pieces(i64 start, i64 block, i64 end, i64 size, F f) {
  for (i64 done = 0; done < block && start < end;) {
    const i64 length = std::min(block - done, end - start);
    f(done, start, length);
    done += length;
    start = end - size;
  }
}

// Calls f(j, start, end, size) for every block that touches [low, high), in the order of the batch; `array` and, if it
// is not null, `gradient` are asked for ahead of that.
template <class F>
inline void touching(const float* array, const float* gradient, const i64* starts, i64 batch, i64 features, i64 blocks,
                     const Windows& windows, i64 block, i64 low, i64 high, F f) {
  const i64 stride = features * blocks, most = samples_of(stride);
  unsigned char* const flags = memory<unsigned char>(most * stride);
  u32* const list = memory<u32>(most * stride + 16);
  const bool one = windows.count == 1;
  const i64 ahead = 2 * AHEAD;  // what is to be written takes longer to come
  for (i64 first = 0; first < batch; first += most) {
    const i64 samples = std::min(most, batch - first), before = first * stride;
    const i64* placed = starts + before;
    // starts before or in the range are [from, from + span); behind `end - block` a block wraps
    const u64 from = low - block + 1, span = high - low + block - 1;
    each_block(windows, samples, features, blocks, [&](i64 at, i64 end, i64) {
      flags[at] = (static_cast<u64>(placed[at]) - from < span) | (placed[at] > end - block);
    });
    const i64 count = flagged(flags, samples * stride, list), end = windows.end(0), size = windows.size(0);
    for (i64 i = 0; i < count; ++i) {
      if (i + ahead < count) {
        prefetch_span<1>(array + placed[list[i + ahead]], block);
        if (gradient) prefetch_span(gradient + (before + list[i + ahead]) * block, block);
      }
      const i64 at = list[i], k = one ? 0 : at / blocks % features;
      f(before + at, placed[at], one ? end : windows.end(k), one ? size : windows.size(k));
    }
  }
}

// to[...] += scale * gradient, of the parts of blocks in [low, high)
void add_range(float* to, const i64* starts, const float* gradient, i64 batch, i64 features, i64 blocks,
               const Windows& windows, i64 block, i64 low, i64 high, float scale) {
  with_width(block, [&](auto z) {
    constexpr int Z = decltype(z)::value;
    const auto add_block = [&](i64 j, i64 start, i64 end, i64 size) {
      const float* from = gradient + j * block;
      if (__builtin_expect(start >= low && start + block <= std::min(end, high), 1)) {
        add<Z>(to + start, from, block, scale);
        return;
      }
      pieces(start, block, end, size, [&](i64 place, i64 at, i64 length) {
        const i64 first = std::max(at, low), last = std::min(at + length, high);
        if (first < last) add<0>(to + first, from + place + first - at, last - first, scale);
      });
    };
    touching(to, gradient, starts, batch, features, blocks, windows, block, low, high, add_block);
  });
}

// The range of a thread: whole lines.
inline void range_of(i64 size, int thread, int threads, i64& low, i64& high) {
  const i64 lines = (size + LINE - 1) / LINE;
  low = lines * thread / threads * LINE;
  high = std::min(size, lines * (thread + 1) / threads * LINE);
}

// Places the blocks of ids. The constants of the hash and of the windows are spread out over the blocks of a piece, so
// that one plain loop places them all, which compilers make vectors of.
struct Placing {
  Ids ids;
  const i64 blocks, block;
  const Windows windows;
  const int hash;
  const unsigned char* own;
  u64 *terms, *multipliers, *bases;
  Modulo* moduli;

  void constants(const i64* table, const i64* piece, const i64* multiplier, i64 samples) {
    ids = ids.spread(samples);
    const i64 stride = ids.features * blocks, n = samples * stride;
    terms = memory<u64, 0>(n), multipliers = memory<u64, 1>(n), bases = memory<u64, 2>(n), moduli = memory<Modulo>(n);
    for (i64 f = 0, j = 0; f < ids.features && samples; ++f) {
      const i64 window = windows.count > 1 ? f : 0, less = hash == AUTHORS ? block - 1 : 0;
      const bool known = f && windows.count == 1;
      const Modulo modulo = known ? moduli[0] : Modulo(std::max<i64>(1, windows.sizes[window] - less));
      for (i64 c = 0; c < blocks; ++c, ++j) {
        const u64 of_table = table[f], of_piece = piece[c];
        terms[j] = hash == UNIVERSAL ? add_p(of_table, of_piece) : of_table + of_piece;
        multipliers[j] = multiplier[c], bases[j] = windows.bases[window], moduli[j] = modulo;
      }
    }
    for (i64 j = stride; j < n; ++j) {
      terms[j] = terms[j - stride], multipliers[j] = multipliers[j - stride];
      if (windows.count > 1) bases[j] = bases[j - stride], moduli[j] = moduli[j - stride];
    }
  }

  // to[samples, features, blocks]: where blocks start. Returns whether all ids lie inside their tables and those that
  // should have blocks of their own do.
  bool place(i64 first, i64 samples, i64* to) const {
    const i64 n = samples * ids.features;
    i64 *const wide = memory<i64, 1>(n), *const x = blocks > 1 ? memory<i64, 2>(n * blocks) : wide;
    if (!ids.read(first, samples, wide)) return false;
    if (blocks > 1) with_width(blocks, [&](auto b) { repeat<decltype(b)::value>(wide, n, x); });
    windows.count > 1 ? hashed<false>(x, n * blocks, to) : hashed<true>(x, n * blocks, to);
    return !own || place_own(wide, samples, to);
  }

  // Every id once for each of its blocks; B is their number, or 0 for any.
  template <int B>
  void repeat(const i64* __restrict wide, i64 n, i64* __restrict x) const {
    const i64 count = B ? B : blocks;
    for (i64 k = 0; k < n; ++k) {
      for (i64 c = 0; c < count; ++c) x[k * count + c] = wide[k];
    }
  }

  template <bool ONE>
  void hashed(const i64* __restrict x, i64 n, i64* __restrict to) const {
    const u64 *const t = terms, *const m = multipliers, *const base = bases;
    const auto each = [&](auto reduced) {
      const Modulo one = moduli[0];
      const u64 first = base[0];
      for (i64 j = 0; j < n; ++j) to[j] = (ONE ? first : base[j]) + reduced(j, ONE ? one : moduli[j]);
    };
    static const Modulo prime(AUTHORS_PRIME);
    if (hash == UNIVERSAL) {
      each([&](i64 j, Modulo modulo) { return modulo(multiply_add(m[j], x[j], t[j])); });
    } else if (hash == MULTIPLY_SHIFT) {
      each([&](i64 j, Modulo modulo) { return high(high(m[j] * x[j] + t[j]) * modulo.m); });
    } else {
      each([&](i64 j, Modulo modulo) { return modulo(prime(m[j] * x[j] + t[j])); });
    }
  }

  bool place_own(const i64* wide, i64 samples, i64* to) const {
    bool fits = true;
    for (i64 f = 0; f < ids.features; ++f) {
      if (!own[f]) continue;
      const u64 base = windows.end(f) - windows.size(f), room = room_of(f);
      for (i64 k = f; k < samples * ids.features; k += ids.features) {
        fits &= static_cast<u64>(wide[k]) < room;
        for (i64 c = 0; c < blocks; ++c) to[k * blocks + c] = base + (wide[k] * blocks + c) * block;
      }
    }
    return fits;
  }

  // How many ids could have blocks of their own.
  u64 room_of(i64 feature) const { return windows.size(feature) / (blocks * block); }

  bool wrong(i64 k) const {
    const i64 f = k % ids.features;
    return ids.wrong(k) || (own && own[f] && static_cast<u64>(ids[k]) >= room_of(f));
  }
};

// out[samples, features, blocks, block] = the blocks that start at `placed`; PAST caches, if so
template <bool PAST>
void read(const float* array, const i64* placed, float* out, i64 samples, i64 features, i64 blocks,
          const Windows& windows, i64 block) {
  const i64 count = samples * features * blocks;
  for (i64 j = 0; j < std::min<i64>(AHEAD, count); ++j) prefetch_span(array + placed[j], block);
  with_width(block, [&](auto z) {
    constexpr int Z = decltype(z)::value;
    each_block(windows, samples, features, blocks, [&](i64 j, i64 end, i64 size) {
      if (j + AHEAD < count) prefetch_span(array + placed[j + AHEAD], block);
      const i64 start = placed[j];
      float* const row = out + j * block;
      if (__builtin_expect(start + block <= end, 1)) {
        copy<Z, PAST>(row, array + start, block);
      } else {
        pieces(start, block, end, size,
               [&](i64 place, i64 at, i64 length) { copy<0>(row + place, array + at, length); });
      }
    });
  });
}

inline void adagrad_element(float& weight, float& total, float gradient, float lr, float eps) {
  total += gradient * gradient;
  weight -= lr * gradient / (std::sqrt(total) + eps);
}

}  // namespace

// Places blocks, starts[batch, features, blocks] = hash(multiplier[block] * id + table[feature] + piece[block]) in the
// window, or the id's own place where own[feature]; and reads them, out[batch, features, blocks, block], unless out is
// null. limits, own and starts may be null too. Returns the first position whose id lies outside its table, or has no
// place of its own where it should, or -1; then not all has been read.
extern "C" i64 read_blocks(const float* array, const void* at, const i64* limits, const i64* table, const i64* piece,
                           const i64* multiplier, const i64* sizes, const i64* bases, const unsigned char* own,
                           i64* starts, float* out, i64 batch, i64 features, i64 blocks, i64 window_count, i64 block,
                           int bytes, int hash, int threads) {
  const Windows windows{sizes, bases, window_count};
  const Placing placing{{at, limits, features, bytes}, blocks, block, windows, hash, own, {}, {}, {}, {}};
  const bool past = out && past_caches(out, batch * features * blocks * block);
  std::atomic<bool> right{true};
  team(threads, [=, &right](int thread, int threads) {
    const i64 stride = features * blocks, most = std::min(batch, samples_of(stride));
    Placing mine = placing;
    mine.constants(table, piece, multiplier, most);
    in_pieces(batch, most, thread, threads, [&](i64 first, i64 samples) {
      i64* const placed = starts ? starts + first * stride : memory<i64, 3>(samples * stride);
      if (!mine.place(first, samples, placed)) {
        right = false;
      } else if (out) {
        (past ? read<true> : read<false>)(array, placed, out + first * stride * block, samples, features, blocks,
                                          windows, block);
      }
    });
    if (past) settle();
  });
  for (i64 k = 0; k < batch * features && !right; ++k) {
    if (placing.wrong(k)) return k;
  }
  return -1;
}

// array += scale * gradients of the blocks
extern "C" void add_blocks(float* array, const i64* starts, const float* gradient, const i64* sizes, const i64* bases,
                           i64 count, i64 batch, i64 features, i64 blocks, i64 window_count, i64 block, float scale,
                           int threads) {
  const Windows windows{sizes, bases, window_count};
  team(threads, [=](int thread, int threads) {
    i64 low, high;
    range_of(count, thread, threads, low, high);
    add_range(array, starts, gradient, batch, features, blocks, windows, block, low, high, scale);
  });
}

// Adagrad, element by element, on the summed gradients. `scratch` is null, or `count` zeros, which it leaves as zeros:
// the gradient is then summed there and the whole array is passed over, which pays where most of it is touched.
extern "C" void adagrad_blocks(float* array, float* total, float* scratch, const i64* starts, const float* gradient,
                               const i64* sizes, const i64* bases, i64 count, i64 batch, i64 features, i64 blocks,
                               i64 window_count, i64 block, float lr, float eps, int threads) {
  const Windows windows{sizes, bases, window_count};
  team(threads, [=](int thread, int threads) {
    i64 low, high;
    range_of(count, thread, threads, low, high);
    if (scratch) {
      add_range(scratch, starts, gradient, batch, features, blocks, windows, block, low, high, 1);
      for (i64 i = low; i < high; ++i) {
        adagrad_element(array[i], total[i], scratch[i], lr, eps);
        scratch[i] = 0;
      }
    } else {
      static thread_local Groups groups;
      groups.start(1024);
      const auto sort = [&](i64 j, i64 start, i64 end, i64 size) {
        pieces(start, block, end, size, [&](i64, i64 at, i64 length) {
          const i64 first = std::max(at, low), last = std::min(at + length, high);
          if (first >= last) return;
          for (i64 line = first / LINE; line <= (last - 1) / LINE; ++line) groups.add(line, static_cast<u32>(j));
        });
      };
      touching(array, nullptr, starts, batch, features, blocks, windows, block, low, high, sort);
      for (i64 k = 0; k < groups.size(); ++k) {
        if (k + AHEAD < groups.size()) {
          prefetch<1>(array + groups.key(k + AHEAD) * LINE, LINE);
          prefetch<1>(total + groups.key(k + AHEAD) * LINE, LINE);
        }
        const i64 from = groups.key(k) * LINE, to = std::min(from + LINE, high);
        float sum[LINE] = {};
        i64 last = -1;
        groups.each(k, [&](i64 j) {
          if (j == last) return;  // a block that meets the line twice, around the end of its window
          last = j;
          const i64 f = window_count > 1 ? j / blocks % features : 0;
          pieces(starts[j], block, windows.end(f), windows.size(f), [&](i64 place, i64 at, i64 length) {
            for (i64 i = std::max(at, from); i < std::min(at + length, to); ++i) {
              sum[i - from] += gradient[j * block + place + i - at];
            }
          });
        });
        for (i64 i = from; i < to; ++i) adagrad_element(array[i], total[i], sum[i - from], lr, eps);
      }
    }
  });
}

// out[batch, features, dim] = values, times -1 where the hash of (feature, id, element) has a 0 in its lowest bit
// (universal) or its highest (multiply-shift)
extern "C" void flip(const float* values, const i64* ids, const i64* table, const i64* piece, const i64* multiplier,
                     float* out, i64 batch, i64 features, i64 dim, int hash, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
  for (i64 k = 0; k < batch * features; ++k) {
    const u64 x = ids[k], of_table = table[k % features];
    const float* from = values + k * dim;
    float* to = out + k * dim;
    for (i64 i = 0; i < dim; ++i) {
      const bool keep = hash == UNIVERSAL ? add_p(multiply_add(multiplier[i], x, of_table), piece[i]) & 1
                                          : (multiplier[i] * x + of_table + piece[i]) >> 63;
      to[i] = keep ? from[i] : -from[i];
    }
  }
}
