// Plain C++ kernels for any architecture, and the twin that the SIMD paths are tested against.
#include <algorithm>
#include <cstring>

#include "isa.h"

namespace dfpjax {
namespace {

#include "kernels_common.h"

struct Portable {
  static constexpr int kLanes = 8;
  static constexpr int kStripVectors = 2;
  static constexpr int kNarrowColumns = 0;  // six rows and a few columns do not fit
  static constexpr int kShortChain = 16;
  struct I {
    int32_t v[kLanes];
  };
  struct F {
    float v[kLanes];
  };

  static I zero() { return I{}; }
  static I load(const void* p) {
    I x;
    std::memcpy(&x, p, sizeof x);
    return x;
  }
  static void store(void* p, I x) { std::memcpy(p, &x, sizeof x); }
  static I broadcast(const int32_t* p) {
    return map([p](int) { return *p; });
  }
  // Keeps the compiler from knowing the value.
  template <class V>
  static void hide(V& x) {
    asm volatile("" : "+m"(x));
  }
  static void dot(I& sum, I a, I b) { sum = add(sum, pair_dot(a, b)); }
  static I pair_dot(I a, I b) {
    return map([&](int i) { return low(a.v[i]) * low(b.v[i]) + high(a.v[i]) * high(b.v[i]); });
  }
  static I add(I a, I b) {
    return map([&](int i) { return a.v[i] + b.v[i]; });
  }
  static I max(I a, I b) {
    return map([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
  }
  static int32_t reduce_max(I a) {
    int32_t result = a.v[0];
    for (int i = 1; i < kLanes; ++i) result = a.v[i] > result ? a.v[i] : result;
    return result;
  }
  // (|m| + 15) >> 4
  static I magnitude(I m) {
    return map([&](int i) { return join_words(magnitude(low(m.v[i])), magnitude(high(m.v[i]))); });
  }

  static F to_float(I x) {
    F r;
    for (int i = 0; i < kLanes; ++i) r.v[i] = static_cast<float>(x.v[i]);
    return r;
  }
  static F load_float(const float* p) {
    F x;
    std::memcpy(&x, p, sizeof x);
    return x;
  }
  static void store_float(float* p, F x) { std::memcpy(p, &x, sizeof x); }
  static void stream_float(float* p, F x) { store_float(p, x); }
  static F broadcast_float(float x) {
    F r;
    for (float& v : r.v) v = x;
    return r;
  }
  static F add_float(F a, F b) {
    for (int i = 0; i < kLanes; ++i) a.v[i] += b.v[i];
    return a;
  }
  static F mul_float(F a, F b) {
    for (int i = 0; i < kLanes; ++i) a.v[i] *= b.v[i];
    return a;
  }
  static void fma_float(F& sum, F a, F b) {
    for (int i = 0; i < kLanes; ++i) sum.v[i] += a.v[i] * b.v[i];
  }

  // Raises the maxima of the sums of 256, 128, ..., 4 elements to those of a row of 16 vectors of
  // sums of two.
  static void raise_maxima(const I* pairs, I* maxima) {
    int32_t sum[kBlock / 2];
    std::memcpy(sum, pairs, sizeof sum);
    for (int level = kNorms, count = kBlock / 4; level-- > 0; count /= 2)
      for (int i = 0; i < count; ++i) {
        sum[i] = sum[2 * i] + sum[2 * i + 1];
        maxima[level].v[0] = std::max(maxima[level].v[0], sum[i]);
      }
  }

  // Words of x[i] (low half) and y[i] (high half).
  static I pair_words(const int16_t* x, const int16_t* y) {
    return map([=](int i) { return join_words(x[i], y[i]); });
  }
  static void interleave_tail(const int16_t* x, const int16_t* y, int n, bool, int32_t* out) {
    for (int i = 0; i < n; ++i) out[i] = join_words(x[i], y[i]);
  }
  static void copy_tail(const int16_t* from, int n, int16_t* to) {
    for (int i = 0; i < n; ++i) to[i] = from[i];
  }
  // Transposes 8 x 8 words.
  static void transpose(const int16_t* rows, int64_t stride, int32_t* out, int64_t out_stride) {
    for (int i = 0; i < kLanes; ++i) {
      const I row = load(rows + i * stride);
      for (int j = 0; j < kLanes; ++j) out[j * out_stride + i] = row.v[j];
    }
  }

 private:
  template <class F>
  static I map(F f) {
    I r;
    for (int i = 0; i < kLanes; ++i) r.v[i] = f(i);
    return r;
  }
  static int32_t low(int32_t word) { return static_cast<int16_t>(word & 0xffff); }
  static int32_t high(int32_t word) { return word >> 16; }
  static int16_t magnitude(int32_t m) { return static_cast<int16_t>(((m < 0 ? -m : m) + 15) >> 4); }
};

#include "kernels_cell.h"
#include "kernels_lanes.h"
#include "kernels_norms.h"
#include "kernels_pack.h"
#include "kernels_table.h"

}  // namespace

extern const KernelTable kPortableKernels;
const KernelTable kPortableKernels = make_table<Portable>("portable");

}  // namespace dfpjax
