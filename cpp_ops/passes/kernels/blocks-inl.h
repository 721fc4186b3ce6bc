// Quantization of blocks of float32 numbers. Included as isa/common-inl.h describes.

using Words = uint32_t __attribute__((vector_size(kVectorBytes)));

// Vectors of which only the first `count` numbers exist.
#if defined(__AVX512F__)
inline Floats load_first(const float* from, int64_t count) {
  return _mm512_maskz_loadu_ps(static_cast<__mmask16>((1U << count) - 1), from);
}
inline void store_first(int16_t* to, Shorts v, int64_t count) {
  _mm256_mask_storeu_epi16(to, static_cast<__mmask16>((1U << count) - 1), load_as<__m256i>(&v));
}
#else
inline Floats load_first(const float* from, int64_t count) {
  float lanes[kFloats] = {};
  __builtin_memcpy(lanes, from, static_cast<size_t>(count) * sizeof(float));
  return load_as<Floats>(lanes);
}
inline void store_first(int16_t* to, Shorts v, int64_t count) {
  __builtin_memcpy(to, &v, static_cast<size_t>(count) * sizeof(int16_t));
}
#endif

inline Ints magnitude_bits(Floats x) { return load_as<Ints>(&x) & 0x7fffffff; }

// Wraps where numbers are not finite.
inline Ints minus(Ints a, Ints b) {
  const Words difference = load_as<Words>(&a) - load_as<Words>(&b);
  return load_as<Ints>(&difference);
}

inline int32_t greatest_lane(Ints v) {
  using Four = int32_t __attribute__((vector_size(16)));
  Four fours[kFloats / 4];
  __builtin_memcpy(fours, &v, sizeof v);
  Four most = fours[0];
  for (const Four& four : fours) most = four > most ? four : most;
  int32_t result = most[0];
  for (int lane = 1; lane < 4; ++lane) result = most[lane] > result ? most[lane] : result;
  return result;
}

inline Words hash(Words x) {
  x = (x ^ (x >> 16)) * 0x7feb352du;
  return (x ^ (x >> 15)) * 0x846ca68bu;
}

// How the numbers of one block are rounded.
struct BlockScale {
  Floats first, second;  // their product is 2^-exponent
  Ints limit;
};

inline void join(Ints* most, Floats x) {
  const Ints bits = magnitude_bits(x);
  *most = bits > *most ? bits : *most;
}

// The mantissas of x. `index` holds the flat indices of the numbers.
template <BlockRounding kRounding>
inline Shorts mantissas_of(Floats x, Words index, const BlockScale& scale, Words seed) {
  const Floats y = x * scale.first * scale.second;
  Ints m;
  if constexpr (kRounding == BlockRounding::kNearest) {
    const Floats round = Floats{} + 12582912.0F;  // 1.5 * 2^23: its last bit is worth one
    const Floats sum = y + round;
    m = minus(load_as<Ints>(&sum), load_as<Ints>(&round));
    m = m > scale.limit ? scale.limit : m;
    m = m < -scale.limit ? -scale.limit : m;
  } else {
    const Ints bits = magnitude_bits(y);
    const Floats magnitude = load_as<Floats>(&bits);
    m = __builtin_convertvector(magnitude, Ints);
    if constexpr (kRounding != BlockRounding::kTruncate) {
      const Floats dropped = magnitude - __builtin_convertvector(m, Floats);
      if constexpr (kRounding == BlockRounding::kBiased) {
        m -= dropped >= 0.25F;  // a comparison that holds is -1
      } else {
        const Words of_number =
            kRounding == BlockRounding::kOwnBits ? hash(load_as<Words>(&x)) : seed;
        const Words random = hash(index ^ of_number) >> 1;
        const Floats threshold = __builtin_convertvector(load_as<Ints>(&random), Floats);
        // Tiny numbers count as zero, since some platforms flush them to zero.
        m -= (threshold < dropped * 0x1p31F) & (dropped >= 0x1p-63F);
      }
    }
    m = m > scale.limit ? scale.limit : m;
    const Ints sign = load_as<Ints>(&x) >> 31;
    m = minus(m ^ sign, sign);
  }
  return __builtin_convertvector(m, Shorts);
}

// What is known of the blocks of a part that stays in the first-level cache between the search for
// the largest magnitudes and the rounding. Both go row by row, as memory likes it.
struct BlockScales {
  static constexpr int64_t kMostBlocks = 64;
  static constexpr int64_t kMostNumbers = 4096;

  Ints most[kMostBlocks];
  int32_t exponents[kMostBlocks];
  float first[kMostBlocks], second[kMostBlocks];  // the factors of 2^-exponent; 0 if not finite
};

// Calls whole(block, column) for each vector of a row, or rest(block, column, count) for the
// numbers at its end that do not fill one. The compiler unrolls blocks of kColumns columns, unless
// this is 0.
template <int kColumns, class Whole, class Rest>
inline void for_vectors(const BlockedPart& part, int64_t first_block, Whole whole, Rest rest) {
  const int64_t block_columns = kColumns == 0 ? part.block_columns : kColumns;
  int64_t c = 0, block = first_block;
  for (; c + block_columns <= part.columns; c += block_columns, ++block)
    for (int64_t i = 0; i < block_columns; i += kFloats) whole(block, c + i);
  for (; c + kFloats <= part.columns; c += kFloats) whole(block, c);
  if (c < part.columns) rest(block, c, part.columns - c);
}

// Calls row(x, offset, first_block) for each row of x; `offset` is that of its mantissas.
template <class Row>
inline void for_rows(const BlockedPart& part, Row row) {
  const float* x = part.x;
  int64_t offset = 0;
  for (int64_t b = 0; b < part.row_blocks(); ++b)
    for (int64_t r = 0; r < part.rows_of(b); ++r, x += part.x_stride, offset += part.stride)
      row(x, offset, b * part.column_blocks());
}

template <int kColumns>
inline void find_largest(const BlockedPart& part, Ints* most) {
  for_rows(part, [&](const float* x, int64_t, int64_t first_block) {
    for_vectors<kColumns>(
        part, first_block,
        [&](int64_t block, int64_t c) { join(most + block, load_as<Floats>(x + c)); },
        [&](int64_t block, int64_t c, int64_t n) { join(most + block, load_first(x + c, n)); });
  });
}

inline float power_of_two(int32_t exponent) {
  const int32_t bits = (exponent + 127) << 23;
  return load_as<float>(&bits);
}
inline Floats power_of_two(Ints exponent) {
  const Ints bits = (exponent + 127) << 23;
  return load_as<Floats>(&bits);
}

// One number or a vector of them, by the same arithmetic.
inline float as_float(int32_t x) { return static_cast<float>(x); }
inline Floats as_float(Ints x) { return __builtin_convertvector(x, Floats); }

// The exponents of blocks and the factors that scale their numbers, given the bits of the largest
// magnitudes. Factors are 0 if a block has a number that is not finite.
template <class I, class F>
inline void set_scales(I largest, int bits, I* exponent, F* first, F* second) {
  // floor(log2), where zero counts as the smallest positive number.
  const F below_normal = as_float(largest | 1);
  const I log2 =
      largest >= 1 << 23 ? (largest >> 23) - 127 : (load_as<I>(&below_normal) >> 23) - (127 + 149);
  const I finite = log2 - (bits - 2), negative = -finite;
  const I half =
      (negative - (negative >> 31)) >> 1;  // 2^-exponent can be outside of the range of float32
  *exponent = largest >= 0x7f800000 ? I{} + (kNotFinite - (bits - 2)) : finite;
  *first = largest >= 0x7f800000 ? F{} : power_of_two(half);
  *second = largest >= 0x7f800000 ? F{} : power_of_two(negative - half);
}

// The even lanes of a and b, or the odd ones.
template <int kOdd, size_t... kLane>
inline Ints every_second(Ints a, Ints b, std::index_sequence<kLane...>) {
  return __builtin_shufflevector(a, b, (2 * static_cast<int>(kLane) + kOdd)...);
}

// Lane i of the result is the greatest lane of v[i].
inline Ints greatest_lanes(const Ints* v) {
  using Lanes = std::make_index_sequence<kFloats>;
  Ints most[kFloats];
  for (int i = 0; i < kFloats; ++i) most[i] = v[i];
#pragma GCC unroll 4
  for (int count = kFloats / 2; count > 0; count /= 2)
#pragma GCC unroll 8
    for (int i = 0; i < count; ++i) {
      const Ints even = every_second<0>(most[2 * i], most[2 * i + 1], Lanes{});
      const Ints odd = every_second<1>(most[2 * i], most[2 * i + 1], Lanes{});
      most[i] = even > odd ? even : odd;
    }
  return most[0];
}

// Rounds the numbers of a part.
template <BlockRounding kRounding>
class Rounder {
 public:
  explicit Rounder(const BlockedPart& part)
      : limit_(Ints{} + ((1 << (part.bits - 1)) - 1)), seed_(Words{} + part.seed) {
    for (int lane = 0; lane < kFloats; ++lane)
      index_[lane] = part.index + static_cast<uint32_t>(lane);
  }

  // The mantissas of the numbers from `offset` on, scaled by both factors.
  Shorts operator()(Floats x, int64_t offset, float first, float second) const {
    const BlockScale scale{Floats{} + first, Floats{} + second, limit_};
    return mantissas_of<kRounding>(x, index_ + static_cast<uint32_t>(offset), scale, seed_);
  }

 private:
  Ints limit_;
  Words seed_, index_;
};

template <BlockRounding kRounding, int kColumns>
inline void round_all(const BlockedPart& part, const BlockScales& scales) {
  const Rounder<kRounding> rounder(part);
  for_rows(part, [&](const float* x, int64_t offset, int64_t first_block) {
    int16_t* const out = part.mantissas + offset;
    const auto rounded = [&](int64_t block, int64_t c, Floats numbers) {
      return rounder(numbers, offset + c, scales.first[block], scales.second[block]);
    };
    for_vectors<kColumns>(
        part, first_block,
        [&](int64_t block, int64_t c) {
          store_as(out + c, rounded(block, c, load_as<Floats>(x + c)));
        },
        [&](int64_t block, int64_t c, int64_t n) {
          store_first(out + c, rounded(block, c, load_first(x + c, n)), n);
        });
  });
}

inline void clear_block(const BlockedPart& part, int64_t row_block, int64_t column_block) {
  const int64_t c = column_block * part.block_columns, left = part.columns - c;
  const int64_t count = left < part.block_columns ? left : part.block_columns;
  for (int64_t r = 0; r < part.rows_of(row_block); ++r)
    __builtin_memset(part.mantissas + (row_block * part.block_rows + r) * part.stride + c, 0,
                     static_cast<size_t>(count) * sizeof(int16_t));
}

template <BlockRounding kRounding, int kColumns>
inline void quantize_at_once(const BlockedPart& part) {
  BlockScales scales;
  const int64_t row_blocks = part.row_blocks(), column_blocks = part.column_blocks();
  const int64_t blocks = row_blocks * column_blocks;
  for (int64_t block = 0; block < blocks + kFloats - 1 && block < BlockScales::kMostBlocks; ++block)
    scales.most[block] = Ints{};
  find_largest<kColumns>(part, scales.most);
  Ints most{};
  for (int64_t block = 0; block < blocks; block += kFloats) {
    const Ints largest = greatest_lanes(scales.most + block);
    most = largest > most ? largest : most;
    Ints exponents;
    Floats first, second;
    set_scales(largest, part.bits, &exponents, &first, &second);
    store_as(scales.exponents + block, exponents);
    store_as(scales.first + block, first);
    store_as(scales.second + block, second);
  }
  for (int64_t r = 0; r < row_blocks; ++r)
    __builtin_memcpy(part.exponents + r * part.exponent_stride,
                     scales.exponents + r * column_blocks,
                     static_cast<size_t>(column_blocks) * sizeof(int32_t));
  round_all<kRounding, kColumns>(part, scales);
  if (greatest_lane(most) < 0x7f800000) return;
  for (int64_t block = 0; block < blocks; ++block)
    if (scales.first[block] == 0) clear_block(part, block / column_blocks, block % column_blocks);
}

// The largest magnitude of numbers that follow each other.
inline int32_t largest_of(const float* x, int64_t count) {
  constexpr int kChains = 4;  // of comparisons that do not wait for each other
  Ints most[kChains] = {};
  int64_t i = 0;
  for (; i + kChains * kFloats <= count; i += kChains * kFloats)
    for (int chain = 0; chain < kChains; ++chain)
      join(most + chain, load_as<Floats>(x + i + chain * kFloats));
  for (; i + kFloats <= count; i += kFloats) join(most, load_as<Floats>(x + i));
  if (i < count) join(most, load_first(x + i, count - i));
  for (const Ints& other : most) most[0] = other > most[0] ? other : most[0];
  return greatest_lane(most[0]);
}

// Blocks that have all columns: the numbers of each follow each other in memory.
template <BlockRounding kRounding>
inline void quantize_whole_rows(const BlockedPart& part) {
  const Rounder<kRounding> rounder(part);
  for (int64_t block = 0; block < part.row_blocks(); ++block) {
    const int64_t start = block * part.block_rows * part.stride;
    const int64_t end = start + part.rows_of(block) * part.stride;
    float first, second;
    set_scales(largest_of(part.x + start, end - start), part.bits,
               part.exponents + block * part.exponent_stride, &first, &second);
    if (first == 0) {
      __builtin_memset(part.mantissas + start, 0,
                       static_cast<size_t>(end - start) * sizeof(int16_t));
      continue;
    }
    int64_t i = start;
    for (; i + kFloats <= end; i += kFloats)
      store_as(part.mantissas + i, rounder(load_as<Floats>(part.x + i), i, first, second));
    if (i < end)
      store_first(part.mantissas + i, rounder(load_first(part.x + i, end - i), i, first, second),
                  end - i);
  }
}

// From 1 to `most`.
inline int64_t clamped(int64_t n, int64_t most) { return n < 1 ? 1 : n < most ? n : most; }

template <BlockRounding kRounding>
inline void quantize_part(const BlockedPart& part) {
  if (part.block_columns >= part.stride) return quantize_whole_rows<kRounding>(part);
  const int64_t block_rows = clamped(part.rows, part.block_rows);
  const int64_t across = clamped(BlockScales::kMostNumbers / (block_rows * part.block_columns),
                                 BlockScales::kMostBlocks);
  const int64_t columns = clamped(part.columns, across * part.block_columns);
  const int64_t column_blocks = (columns + part.block_columns - 1) / part.block_columns;
  const int64_t down = clamped(BlockScales::kMostNumbers / (block_rows * columns),
                               BlockScales::kMostBlocks / column_blocks);
  constexpr int kUsual = 32;  // has code of its own
  const auto quantize = part.block_columns == kUsual ? quantize_at_once<kRounding, kUsual>
                                                     : quantize_at_once<kRounding, 0>;
  for (int64_t r = 0; r < part.rows; r += down * part.block_rows)
    for (int64_t c = 0; c < part.columns; c += columns)
      quantize(part.from(r, c, down * part.block_rows, columns));
}

void quantize_blocks(const BlockedPart& part) {
  switch (part.rounding) {
    case BlockRounding::kNearest:
      return quantize_part<BlockRounding::kNearest>(part);
    case BlockRounding::kBiased:
      return quantize_part<BlockRounding::kBiased>(part);
    case BlockRounding::kTruncate:
      return quantize_part<BlockRounding::kTruncate>(part);
    case BlockRounding::kSeed:
      return quantize_part<BlockRounding::kSeed>(part);
    case BlockRounding::kOwnBits:
      return quantize_part<BlockRounding::kOwnBits>(part);
  }
}
