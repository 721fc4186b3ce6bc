// Exponents of operands in blocks: loops over many points. Included as isa/common-inl.h describes.

inline int32_t larger(int32_t a, int32_t b) { return a > b ? a : b; }
inline int32_t smaller(int32_t a, int32_t b) { return a < b ? a : b; }

void look_up(const int32_t* exponents, const Places& places, const RunPlace& run, int count,
             int32_t* out) {
  const int32_t columns = places.columns - run.column, rows = places.rows;
  for (int i = 0; i < count; ++i) {
    int32_t row = places.row[i] + run.row + (places.column[i] >= columns ? 1 : 0);
    int32_t first = places.first[i] + run.column_block;
    first += row >= rows ? places.outer_step : row < 0 ? -places.outer_step : 0;
    row += row >= rows ? -rows : row < 0 ? rows : 0;
    // Elements of the padding have no exponent, and it does not matter what is read.
    const int32_t index = first + (row >> places.row_shift) * places.block_columns;
    const int32_t exponent = exponents[larger(0, smaller(index, places.last))];
    out[i] = exponent <= kOfZeros ? kAbsent : exponent;
  }
}

void raise_exponents(const int32_t* from, int count, int32_t* most) {
  for (int i = 0; i < count; ++i) most[i] = larger(most[i], from[i]);
}

int32_t largest_exponent(const int32_t* from, int count) {
  int32_t largest = kAbsent;
  for (int i = 0; i < count; ++i) largest = larger(largest, from[i]);
  return largest;
}

inline int32_t shift_to_common(int32_t common, int32_t exponent) {
  // What is absent, but not everything with it, is far below.
  return smaller(common - exponent, kNegligibleShift);
}

bool shifts_to(const int32_t* common, bool shared, const int32_t* from, int count, int8_t* out) {
  int32_t any = 0;
  const int32_t of_all = *common;
  for (int i = 0; i < count; ++i) {
    const int32_t shift = shift_to_common(shared ? of_all : common[i], from[i]);
    out[i] = static_cast<int8_t>(shift);
    any |= shift;
  }
  return any != 0;
}

int32_t align_points(const int32_t* from, int k, int32_t* common, int8_t* shifts) {
  int32_t largest = kAbsent;
  for (int start = 0; start < k; start += kSegment, ++common) {
    const int size = smaller(kSegment, k - start);
    *common = largest_exponent(from + start, size);
    shifts_to(common, true, from + start, size, shifts + start);
    largest = larger(largest, *common);
  }
  return largest;
}

void add_exponent(int32_t other, int count, int32_t* sums, int32_t* most) {
  for (int i = 0; i < count; ++i) {
    sums[i] += other;
    most[i] = larger(most[i], sums[i]);
  }
}

void add_exponents(const int32_t* other, int count, int32_t* sums) {
  for (int i = 0; i < count; ++i) sums[i] += other[i];
}

void scales_of(const int32_t* bases, bool shared, const int32_t* exponents, int count,
               float* scales) {
  const int32_t of_all = *bases;
  for (int i = 0; i < count; ++i) {
    const int32_t above = exponents[i] - (shared ? of_all : bases[i]);
    const int32_t bits = above < -kMostBelow ? 0 : (above + 127) << 23;
    __builtin_memcpy(scales + i, &bits, sizeof bits);
  }
}
