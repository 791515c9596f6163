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
constexpr i64 CHUNK = 16;  // samples whose blocks are asked for before the first of them is read

struct Windows {
  const i64 *sizes, *bases;
  i64 count;
  i64 size(i64 feature) const { return sizes[count > 1 ? feature : 0]; }
  i64 end(i64 feature) const { return bases[count > 1 ? feature : 0] + size(feature); }
};

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

// Calls f(j, start, end, size) for every block that touches [low, high), in the order of the batch; `array` is asked
// for ahead of that.
template <class F>
inline void touching(const float* array, const i64* starts, i64 batch, i64 features, i64 blocks, const Windows& windows,
                     i64 block, i64 low, i64 high, F f) {
  const i64 stride = features * blocks;
  u32* const list = positions(CHUNK * stride + 1);
  for (i64 first = 0; first < batch; first += CHUNK) {
    const i64 samples = std::min(CHUNK, batch - first);
    const i64* placed = starts + first * stride;
    i64 count = 0;
    // no branch: it could not be foreseen
    if (windows.count == 1) {
      const i64 end = windows.end(0), span = high - low + block - 1, from = low - block + 1, last = end - block;
      for (i64 at = 0; at < samples * stride; ++at) {
        list[count] = static_cast<u32>(at);
        count += (static_cast<u64>(placed[at] - from) < static_cast<u64>(span)) | (placed[at] > last);
      }
    } else {
      for (i64 at = 0, b = 0; b < samples; ++b) {
        for (i64 k = 0; k < features; ++k) {
          const i64 end = windows.end(k);
          for (i64 c = 0; c < blocks; ++c, ++at) {
            list[count] = static_cast<u32>(at);
            count += ((placed[at] < high) & (placed[at] + block > low)) | (placed[at] + block > end);
          }
        }
      }
    }
    const bool one = windows.count == 1;
    const i64 end = windows.end(0), size = windows.size(0);
    for (i64 i = 0; i < count; ++i) {
      if (i + AHEAD < count) prefetch_span<1>(array + placed[list[i + AHEAD]], block);
      const i64 at = list[i], k = one ? 0 : at / blocks % features;
      f(first * stride + at, placed[at], one ? end : windows.end(k), one ? size : windows.size(k));
    }
  }
}

// to[...] += scale * gradient, of the parts of blocks in [low, high)
void add_range(float* to, const i64* starts, const float* gradient, i64 batch, i64 features, i64 blocks,
               const Windows& windows, i64 block, i64 low, i64 high, float scale) {
  with_width(block, [&](auto z) {
    constexpr int Z = decltype(z)::value;
    touching(to, starts, batch, features, blocks, windows, block, low, high, [&](i64 j, i64 start, i64 end, i64 size) {
      const float* from = gradient + j * block;
      if (__builtin_expect(start >= low && start + block <= std::min(end, high), 1)) {
        add<Z>(to + start, from, block, scale);
        return;
      }
      pieces(start, block, end, size, [&](i64 place, i64 at, i64 length) {
        const i64 first = std::max(at, low), last = std::min(at + length, high);
        if (first < last) add<0>(to + first, from + place + first - at, last - first, scale);
      });
    });
  });
}

// The range of this thread: whole lines.
inline void my_range(i64 size, i64& low, i64& high) {
  const i64 lines = (size + LINE - 1) / LINE, thread = omp_get_thread_num(), threads = omp_get_num_threads();
  low = lines * thread / threads * LINE;
  high = std::min(size, lines * (thread + 1) / threads * LINE);
}

// A hash with its constants, and the windows with what reduces a hash to them.
struct Placing {
  const i64 *table, *piece, *multiplier;
  const unsigned char* own;
  int hash;
  i64 block;
  Windows windows;
  std::vector<Modulo> moduli;
  std::vector<u64> room;  // how many ids could have blocks of their own in each window

  u64 sum(u64 x, i64 f, i64 c) const { return multiplier[c] * x + table[f] + piece[c]; }
};

// to[samples, features, blocks]: where blocks start. B is the number of blocks, or 0 for any. Returns whether all ids
// that should have blocks of their own do.
template <int B>
bool place(const Placing& by, const i64* ids, i64 samples, i64 features, i64 any, i64* to) {
  static const Modulo prime(AUTHORS_PRIME);
  const i64 blocks = B ? B : any;
  bool fits = true;
  for (i64 b = 0; b < samples; ++b, ids += features, to += features * blocks) {
    if (by.hash == MULTIPLY_SHIFT && by.windows.count == 1 && !by.own) {
      const u64 size = by.windows.size(0), base = by.windows.bases[0];
      for (i64 f = 0; f < features; ++f) {
        for (i64 c = 0; c < blocks; ++c) to[f * blocks + c] = base + ((by.sum(ids[f], f, c) >> 32) * size >> 32);
      }
      continue;
    }
    for (i64 f = 0; f < features; ++f) {
      const i64 w = by.windows.count > 1 ? f : 0, base = by.windows.bases[w];
      const u64 x = ids[f], size = by.windows.sizes[w];
      const Modulo& modulo = by.moduli[w];
      i64* at = to + f * blocks;
      if (by.own && by.own[f]) {
        fits &= x < by.room[w];
        for (i64 c = 0; c < blocks; ++c) at[c] = base + (x * blocks + c) * by.block;
      } else if (by.hash == UNIVERSAL) {
        for (i64 c = 0; c < blocks; ++c) {
          at[c] = base + modulo(add_p(multiply_add(by.multiplier[c], x, by.table[f]), by.piece[c]));
        }
      } else if (by.hash == MULTIPLY_SHIFT) {
        for (i64 c = 0; c < blocks; ++c) at[c] = base + ((by.sum(x, f, c) >> 32) * size >> 32);
      } else {
        for (i64 c = 0; c < blocks; ++c) at[c] = base + modulo(prime(by.sum(x, f, c)));
      }
    }
  }
  return fits;
}

// The first position whose id has no room for blocks of its own where its feature asks for them, or -1.
i64 without_room(const Placing& by, const i64* ids, i64 batch, i64 features) {
  for (i64 b = 0; b < batch; ++b) {
    for (i64 f = 0; f < features; ++f) {
      const u64 room = by.room[by.windows.count > 1 ? f : 0];
      if (by.own[f] && static_cast<u64>(ids[b * features + f]) >= room) return b * features + f;
    }
  }
  return -1;
}

inline void adagrad_element(float& weight, float& total, float gradient, float lr, float eps) {
  total += gradient * gradient;
  weight -= lr * gradient / (std::sqrt(total) + eps);
}

}  // namespace

// Places blocks, starts[batch, features, blocks] = hash(multiplier[block] * id + table[feature] + piece[block]) in the window,
// or the id's own place where own[feature]; and reads them, out[batch, features, blocks, block], unless out is null.
// starts may be null too. Returns the first position whose id has no place of its own where it should, or -1; then not
// all has been read.
extern "C" i64 read_blocks(const float* array, const i64* ids, const i64* table, const i64* piece,
                           const i64* multiplier, const i64* sizes, const i64* bases, const unsigned char* own,
                           i64* starts, float* out, i64 batch, i64 features, i64 blocks, i64 window_count, i64 block,
                           int hash, int threads) {
  Placing by{table, piece, multiplier, own, hash, block, {sizes, bases, window_count}, {}, {}};
  const Windows& windows = by.windows;
  for (i64 w = 0; w < window_count; ++w) {
    by.moduli.emplace_back(std::max<i64>(1, hash == AUTHORS ? sizes[w] - block + 1 : sizes[w]));
    by.room.push_back(sizes[w] / (blocks * block));
  }
  const i64 stride = features * blocks;
  bool fits = true;
#pragma omp parallel num_threads(threads) reduction(& : fits) if (threads > 1)
  {
    static thread_local std::vector<i64> chunk;
    if (static_cast<i64>(chunk.size()) < CHUNK * stride) chunk.resize(CHUNK * stride);
#pragma omp for schedule(static)
    for (i64 first = 0; first < batch; first += CHUNK) {
      const i64 samples = std::min(CHUNK, batch - first), count = samples * stride;
      i64* placed = starts ? starts + first * stride : chunk.data();
      with_width(blocks, [&](auto b) {
        fits &= place<decltype(b)::value>(by, ids + first * features, samples, features, blocks, placed);
      });
      if (!out || !fits) continue;
      with_width(block, [&](auto z) {
        constexpr int Z = decltype(z)::value;
        float* row = out + first * stride * block;
        for (i64 j = 0; j < std::min<i64>(AHEAD, count); ++j) prefetch_span(array + placed[j], block);
        for (i64 j = 0; j < count; ++j, row += block) {
          if (j + AHEAD < count) prefetch_span(array + placed[j + AHEAD], block);
          const i64 start = placed[j], f = windows.count > 1 ? j / blocks % features : 0, end = windows.end(f);
          if (__builtin_expect(start + block <= end, 1)) {
            copy<Z>(row, array + start, block);
          } else {
            pieces(start, block, end, windows.size(f),
                   [&](i64 place, i64 at, i64 length) { copy<0>(row + place, array + at, length); });
          }
        }
      });
    }
  }
  return fits ? -1 : without_room(by, ids, batch, features);
}

// array += scale * gradients of the blocks
extern "C" void add_blocks(float* array, const i64* starts, const float* gradient, const i64* sizes, const i64* bases,
                           i64 count, i64 batch, i64 features, i64 blocks, i64 window_count, i64 block, float scale,
                           int threads) {
  const Windows windows{sizes, bases, window_count};
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    i64 low, high;
    my_range(count, low, high);
    add_range(array, starts, gradient, batch, features, blocks, windows, block, low, high, scale);
  }
}

// Adagrad, element by element, on the summed gradients. `scratch` is null, or `count` zeros, which it leaves as zeros:
// the gradient is then summed there and the whole array is passed over, which pays where most of it is touched.
extern "C" void adagrad_blocks(float* array, float* total, float* scratch, const i64* starts, const float* gradient,
                               const i64* sizes, const i64* bases, i64 count, i64 batch, i64 features, i64 blocks,
                               i64 window_count, i64 block, float lr, float eps, int threads) {
  const Windows windows{sizes, bases, window_count};
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    i64 low, high;
    my_range(count, low, high);
    if (scratch) {
      add_range(scratch, starts, gradient, batch, features, blocks, windows, block, low, high, 1);
      for (i64 i = low; i < high; ++i) {
        adagrad_element(array[i], total[i], scratch[i], lr, eps);
        scratch[i] = 0;
      }
    } else {
      static thread_local Groups groups;
      groups.start(1024);
      touching(array, starts, batch, features, blocks, windows, block, low, high, [&](i64 j, i64 start, i64 end, i64 size) {
        pieces(start, block, end, size, [&](i64, i64 at, i64 length) {
          const i64 first = std::max(at, low), last = std::min(at + length, high);
          if (first >= last) return;
          for (i64 line = first / LINE; line <= (last - 1) / LINE; ++line) groups.add(line, static_cast<u32>(j));
        });
      });
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
  }
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
