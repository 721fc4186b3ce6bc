// Element-wise kernels: depthwise lanes, split sums and peaks. See kernels_common.h.

template <class S>
void lanes(const int16_t* const* a, const int32_t* b, int64_t b_stride, int k, int count,
           bool first, float* sums) {
  using I = typename S::I;
  using F = typename S::F;
  int lane = 0;
  for (; lane + S::kLanes <= count; lane += S::kLanes) {
    F sum = first ? S::broadcast_float(0) : S::load_float(sums + lane);
    for (int i = 0; i + 1 < k; i += 2) {
      const I words = S::pair_words(a[i] + lane, a[i + 1] + lane);
      sum = S::add_float(sum,
                         S::to_float(S::pair_dot(words, S::load(b + (i / 2) * b_stride + lane))));
    }
    if (k % 2 != 0) {
      const I words = S::pair_words(a[k - 1] + lane, a[k - 1] + lane);  // b's second half is zero
      sum = S::add_float(sum,
                         S::to_float(S::pair_dot(words, S::load(b + (k / 2) * b_stride + lane))));
    }
    S::store_float(sums + lane, sum);
  }
  for (; lane < count; ++lane) {
    float sum = first ? 0 : sums[lane];
    for (int i = 0; i < k; i += 2) {
      const int32_t word = b[(i / 2) * b_stride + lane];
      int32_t products = a[i][lane] * static_cast<int16_t>(word & 0xffff);
      if (i + 1 < k) products += a[i + 1][lane] * (word >> 16);
      sum += static_cast<float>(products);
    }
    sums[lane] = sum;
  }
}

template <class S>
void combine(const float* partial, int64_t stride, int64_t parts, int64_t count, float scale,
             float* out) {
  using F = typename S::F;
  const F factor = S::broadcast_float(scale);
  int64_t i = 0;
  for (; i + S::kLanes <= count; i += S::kLanes) {
    F sum = S::load_float(partial + i);
    for (int64_t p = 1; p < parts; ++p)
      sum = S::add_float(sum, S::load_float(partial + p * stride + i));
    S::store_float(out + i, S::mul_float(sum, factor));
  }
  for (; i < count; ++i) {
    float sum = partial[i];
    for (int64_t p = 1; p < parts; ++p) sum += partial[p * stride + i];
    out[i] = sum * scale;
  }
}

inline constexpr int kPeakSums = 12;  // enough to hide the latency of every instruction measured

template <class S>
int64_t peak_dot(int64_t iterations) {
  using I = typename S::I;
  I sum[kPeakSums];
  const int32_t one = 1;
  I x = S::broadcast(&one);
#pragma GCC unroll 12
  for (int i = 0; i < kPeakSums; ++i) sum[i] = S::zero();
  for (int64_t n = 0; n < iterations; ++n) {
#pragma GCC unroll 12
    for (int i = 0; i < kPeakSums; ++i) {
      S::hide(x);
      S::dot(sum[i], x, x);
    }
  }
#pragma GCC unroll 12
  for (int i = 0; i < kPeakSums; ++i) S::hide(sum[i]);
  return iterations * kPeakSums * S::kLanes * 2;
}

template <class S>
int64_t peak_fma(int64_t iterations) {
  using F = typename S::F;
  F sum[kPeakSums];
  const F x = S::broadcast_float(1);
#pragma GCC unroll 12
  for (int i = 0; i < kPeakSums; ++i) sum[i] = S::broadcast_float(0);
  for (int64_t n = 0; n < iterations; ++n) {
#pragma GCC unroll 12
    for (int i = 0; i < kPeakSums; ++i) S::fma_float(sum[i], x, x);
  }
#pragma GCC unroll 12
  for (int i = 0; i < kPeakSums; ++i) S::hide(sum[i]);
  return iterations * kPeakSums * S::kLanes;
}
