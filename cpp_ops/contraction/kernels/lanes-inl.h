// Element-wise kernels: depthwise lanes, and the sums of splits. Included as isa/common-inl.h
// describes.

// Updates the sums of NV vectors of lanes. Several vectors use whole cache lines and hide the
// latency of an addition.
template <class S, int NV, bool kAny>
inline __attribute__((always_inline)) void lane_vectors(const int16_t* const* a, const int32_t* b,
                                                        int64_t b_stride, int k, int lane,
                                                        bool first, float* sums) {
  using F = typename S::F;
  F sum[NV];
#pragma GCC unroll 4
  for (int j = 0; j < NV; ++j)
    sum[j] = first ? S::broadcast_float(0) : S::load_float(sums + lane + j * S::kLanes);
  for (int i = 0; i < k; i += 2) {
    const int16_t* x = a[i] + lane;
    const int16_t* y = a[i + 1 < k ? i + 1 : i] + lane;  // if k is odd, b ends with a zero half
    const int32_t* z = b + (i / 2) * b_stride + lane;
#pragma GCC unroll 4
    for (int j = 0; j < NV; ++j) {
      const int at = j * S::kLanes;
      const typename S::I products = S::pair_dot(S::pair_words(x + at, y + at), S::load(z + at));
      // A sum wraps only if it is 2^31. The conversion rounds the largest int32 to just this value.
      sum[j] = S::add_float(sum[j], S::to_float(kAny ? S::lowest_to_largest(products) : products));
    }
  }
#pragma GCC unroll 4
  for (int j = 0; j < NV; ++j) S::store_float(sums + lane + j * S::kLanes, sum[j]);
}

template <class S, bool kAny>
void lanes(const int16_t* const* a, const int32_t* b, int64_t b_stride, int k, int count,
           bool first, float* sums) {
  int lane = 0;
  for (; lane + 4 * S::kLanes <= count; lane += 4 * S::kLanes)
    lane_vectors<S, 4, kAny>(a, b, b_stride, k, lane, first, sums);
  for (; lane + S::kLanes <= count; lane += S::kLanes)
    lane_vectors<S, 1, kAny>(a, b, b_stride, k, lane, first, sums);
  for (; lane < count; ++lane) {
    float sum = first ? 0 : sums[lane];
    for (int i = 0; i < k; i += 2) {
      const int32_t word = b[(i / 2) * b_stride + lane];
      int64_t products = a[i][lane] * static_cast<int16_t>(word & 0xffff);
      if (i + 1 < k) products += a[i + 1][lane] * (word >> 16);
      sum += static_cast<float>(products);
    }
    sums[lane] = sum;
  }
}

// Updates the sums of NV vectors of lanes by products that are scaled one by one.
template <class S, int NV>
inline __attribute__((always_inline)) void scaled_lane_vectors(const ScaledLanes& args, int lane) {
  using F = typename S::F;
  F sum[NV];
#pragma GCC unroll 4
  for (int j = 0; j < NV; ++j) {
    const float* from = args.sums + lane + j * S::kLanes;
    sum[j] = args.first ? S::broadcast_float(0)
                        : S::mul_float(S::load_float(from), S::broadcast_float(args.before));
  }
  const float* scale = args.scales;
  for (int i = 0; i < args.k; ++i, scale += args.scale_step) {
    const int16_t *a = args.a[i] + lane, *b = args.b[i] + lane;
    const F factor = S::broadcast_float(*scale);
#pragma GCC unroll 4
    for (int j = 0; j < NV; ++j) {
      const int at = j * S::kLanes;
      const typename S::I product = S::pair_dot(S::low_halves(a + at), S::low_halves(b + at));
      S::fma_float(sum[j], S::to_float(product), factor);  // rounds once: scaling is exact
    }
  }
#pragma GCC unroll 4
  for (int j = 0; j < NV; ++j)
    S::store_float(args.sums + lane + j * S::kLanes,
                   S::mul_float(sum[j], S::broadcast_float(args.after)));
}

template <class S>
void scaled_lanes(const ScaledLanes& args) {
  int lane = args.lane;
  for (; lane + 4 * S::kLanes <= args.end; lane += 4 * S::kLanes)
    scaled_lane_vectors<S, 4>(args, lane);
  for (; lane + 2 * S::kLanes <= args.end; lane += 2 * S::kLanes)
    scaled_lane_vectors<S, 2>(args, lane);
  for (; lane + S::kLanes <= args.end; lane += S::kLanes) scaled_lane_vectors<S, 1>(args, lane);
  for (; lane < args.end; ++lane) {
    float sum = args.first ? 0 : args.sums[lane] * args.before;
    for (int i = 0; i < args.k; ++i)
      sum +=
          static_cast<float>(args.a[i][lane] * args.b[i][lane]) * args.scales[i * args.scale_step];
    args.sums[lane] = sum * args.after;
  }
}

template <class S, bool kScaled>
inline __attribute__((always_inline)) void combine_parts(const float* partial, int64_t stride,
                                                         int64_t parts, int64_t count,
                                                         const float* factors, float scale,
                                                         float* out) {
  using F = typename S::F;
  const F last = S::broadcast_float(scale);
  int64_t i = 0;
  for (; i + S::kLanes <= count; i += S::kLanes) {
    F sum = S::load_float(partial + i);
    if (kScaled) sum = S::mul_float(sum, S::broadcast_float(factors[0]));
    for (int64_t p = 1; p < parts; ++p) {
      const F part = S::load_float(partial + p * stride + i);
      sum = S::add_float(sum, kScaled ? S::mul_float(part, S::broadcast_float(factors[p])) : part);
    }
    S::store_float(out + i, S::mul_float(sum, last));
  }
  for (; i < count; ++i) {
    float sum = kScaled ? partial[i] * factors[0] : partial[i];
    for (int64_t p = 1; p < parts; ++p)
      sum += kScaled ? partial[p * stride + i] * factors[p] : partial[p * stride + i];
    out[i] = sum * scale;
  }
}

template <class S>
void combine(const float* partial, int64_t stride, int64_t parts, int64_t count,
             const float* factors, float scale, float* out) {
  if (factors != nullptr)
    combine_parts<S, true>(partial, stride, parts, count, factors, scale, out);
  else
    combine_parts<S, false>(partial, stride, parts, count, factors, scale, out);
}
