// Register-only loops that measure the peak speed of a path. Included as isa/common-inl.h
// describes.

inline constexpr int kPeakSums = 12;  // enough to hide the latency of each measured instruction

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
