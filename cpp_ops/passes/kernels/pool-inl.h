// Maxima over windows, and where they are. Included as isa/common-inl.h describes.

// The inputs of one axis that a window covers: `count` from `first` on, after `before` that do not
// exist.
struct Covered {
  int64_t first, count, before;
};
inline Covered covered(const PoolAxis& axis, int64_t i) {
  const int64_t begin = i * axis.stride - axis.padding, end = begin + axis.window;
  const int64_t first = begin < 0 ? 0 : begin;
  return {first, (end < axis.in ? end : axis.in) - first, first - begin};
}

// The channels of a window's inputs, from the first input that exists on.
struct WindowAt {
  const float* x;
  Covered rows, columns;
  int64_t row_stride, stride;  // from one row, and from one input of a row, to the next
};
inline WindowAt window_at(const Pool& pool, const float* image, const Covered& rows, int64_t j) {
  const Covered columns = covered(pool.width, j);
  const int64_t row_stride = pool.width.in * pool.channels;
  return {image + rows.first * row_stride + columns.first * pool.channels, rows, columns,
          row_stride, pool.channels};
}

// Runs `run(constant)` with the size of square windows as a constant for the most common ones, so
// that loops over inputs are unrolled, else with 0.
template <class Run>
inline void with_window(int64_t rows, int64_t columns, Run run) {
  if (rows == 2 && columns == 2) return run(Constant<2>{});
  if (rows == 3 && columns == 3) return run(Constant<3>{});
  run(Constant<0>{});
}

// IEEE 754's maximum: NaN if either is NaN, and 0 is greater than -0.
template <class V, class I>
inline V maximum(V a, V b) {
  const V greater = b > a || b != b ? b : a;
  const I both = load_as<I>(&a) & load_as<I>(&b);
  return a == b ? load_as<V>(&both) : greater;  // equal numbers have equal bits, except zeros
}

template <class V, class I, int kWindow>
inline void max_at(const WindowAt& window, int64_t c, float* out) {
  const int64_t rows = kWindow != 0 ? kWindow : window.rows.count;
  const int64_t columns = kWindow != 0 ? kWindow : window.columns.count;
  const float* const first = window.x + c;
  V best = load_as<V>(first);
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t k = r == 0 ? 1 : 0; k < columns; ++k)
      best = maximum<V, I>(best, load_as<V>(first + r * window.row_stride + k * window.stride));
  store_as(out, best);
}

// The channels from `first` to `end` of a window.
template <int kWindow>
inline void max_of_window(const WindowAt& window, int64_t first, int64_t end, float* out) {
  int64_t c = first;
  for (; c + kFloats <= end; c += kFloats, out += kFloats)
    max_at<Floats, Ints, kWindow>(window, c, out);
  for (; c < end; ++c, ++out) max_at<float, int32_t, kWindow>(window, c, out);
}

void max_of_windows(const PooledRows& at, int64_t rows, int64_t columns) {
  const Pool& pool = *at.pool;
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t index = at.first + r * at.stride;
    int64_t channel = index % pool.channels, j = index / pool.channels;
    int64_t i = j / pool.width.out;
    j -= i * pool.width.out;
    float* out = at.out + r * at.out_stride;
    for (int64_t left = columns; left > 0;) {
      const int64_t image = i / pool.height.out;
      const float* const x = at.x + image * pool.height.in * pool.width.in * pool.channels;
      const Covered covers = covered(pool.height, i - image * pool.height.out);
      for (; left > 0 && j < pool.width.out; ++j, channel = 0) {
        const WindowAt window = window_at(pool, x, covers, j);
        const int64_t end = channel + left < pool.channels ? channel + left : pool.channels;
        with_window(window.rows.count, window.columns.count, [&](auto size) {
          max_of_window<decltype(size)::value>(window, channel, end, out);
        });
        out += end - channel;
        left -= end - channel;
      }
      j = 0;
      ++i;
    }
  }
}

// Comparisons with a NaN fail, so if there is a NaN, this is the first of the greatest after the
// last NaN. JAX pads the image with -infinity and may select the padding: after a NaN, or before
// inputs of -infinity.
template <class V, class I, int kWindow>
inline void greatest_at(const Pool& pool, const WindowAt& window, int64_t c, int32_t* inputs) {
  const int64_t height = kWindow != 0 ? kWindow : pool.height.window;
  const int64_t width = kWindow != 0 ? kWindow : pool.width.window;
  const auto exists = [](const Covered& covers, int64_t k) {
    return kWindow != 0 || (k >= covers.before && k < covers.before + covers.count);
  };
  const float* const origin =
      window.x + c - window.rows.before * window.row_stride - window.columns.before * window.stride;
  V best = V{} + __builtin_nanf("");
  I index = I{} - 1;
  int32_t number = 0;
  for (int64_t r = 0; r < height; ++r)
    for (int64_t k = 0; k < width; ++k, ++number) {
      const bool inside = exists(window.rows, r) && exists(window.columns, k);
      const V x = inside ? load_as<V>(origin + r * window.row_stride + k * window.stride)
                         : V{} - __builtin_inff();
      const auto keep = best >= x;
      best = keep ? best : x;
      index = keep ? index : I{} + (inside ? number : -1);
    }
  store_as(inputs + c, index);
}

void greatest_of_windows(const Pool& pool, const float* image, int64_t i, int32_t* inputs) {
  const Covered rows = covered(pool.height, i);
  for (int64_t j = 0; j < pool.width.out; ++j, inputs += pool.channels) {
    const WindowAt window = window_at(pool, image, rows, j);
    const bool whole =
        rows.count == pool.height.window && window.columns.count == pool.width.window;
    with_window(whole ? pool.height.window : 0, pool.width.window, [&](auto size) {
      constexpr int kWindow = decltype(size)::value;
      int64_t c = 0;
      for (; c + kFloats <= pool.channels; c += kFloats)
        greatest_at<Floats, Ints, kWindow>(pool, window, c, inputs);
      for (; c < pool.channels; ++c) greatest_at<float, int32_t, kWindow>(pool, window, c, inputs);
    });
  }
}

// The windows [first, end) of one axis that cover an input.
struct Covering {
  int64_t first, end;
};
inline Covering covering(const PoolAxis& axis, int64_t input) {
  const int64_t after = input + axis.padding - axis.window;  // the last input before the window
  const int64_t first = after < 0 ? 0 : after / axis.stride + 1;
  const int64_t end = (input + axis.padding) / axis.stride + 1;
  return {first, end < axis.out ? end : axis.out};
}

// A window that covers an input: its cotangents, its greatest inputs, and the input's number in it.
struct Cotangent {
  const float* g;
  const int32_t* inputs;
  int32_t number;
};

inline void store_past_caches(float* to, Floats v) {
#if defined(__AVX512F__)
  _mm512_stream_ps(to, v);
#elif defined(__AVX2__)
  _mm256_stream_ps(to, v);
#else
  store_as(to, v);
#endif
}
inline void store_past_caches(float* to, float v) { *to = v; }

// The sum over `count` windows, which is kCount unless that is 0.
template <class V, class I, int kCount>
inline void gradient_at(const Cotangent* windows, int64_t count, int64_t c, float* out,
                        bool stream) {
  V sum = {};
  for (int64_t k = 0; k < (kCount != 0 ? kCount : count); ++k) {
    const Cotangent& window = windows[k];
    const V g = load_as<V>(window.g + c);
    sum = sum + (load_as<I>(window.inputs + c) == I{} + window.number ? g : V{});
  }
  if (stream)
    store_past_caches(out + c, sum);
  else
    store_as(out + c, sum);
}

template <int kCount>
inline void gradient_of_input(const Cotangent* windows, int64_t count, int64_t channels, float* out,
                              bool stream) {
  int64_t c = 0;
  for (; c + kFloats <= channels; c += kFloats)
    gradient_at<Floats, Ints, kCount>(windows, count, c, out, stream);
  for (; c < channels; ++c) gradient_at<float, int32_t, kCount>(windows, count, c, out, stream);
}

void pool_gradient(const PoolGradientRow& at) {
  const Pool& pool = *at.pool;
  const PoolAxis &height = pool.height, &width = pool.width;
  const int64_t row = width.out * pool.channels;
  const Covering rows = covering(height, at.row);
  Cotangent windows[kMostTaps];
  for (int64_t column = 0; column < width.in; ++column) {
    const Covering columns = covering(width, column);
    int64_t count = 0, slot = rows.first % at.slots;
    for (int64_t i = rows.first; i < rows.end; ++i) {
      const int64_t r = at.row + height.padding - i * height.stride;
      for (int64_t j = columns.first; j < columns.end; ++j) {
        const int64_t k = column + width.padding - j * width.stride;
        const int64_t offset = j * pool.channels;
        windows[count++] = {at.g + i * row + offset, at.inputs + slot * row + offset,
                            static_cast<int32_t>(r * width.window + k)};
      }
      slot = slot + 1 < at.slots ? slot + 1 : 0;
    }
    float* const out = at.out + column * pool.channels;
    const auto write = [&](auto size) {
      constexpr int kCount = decltype(size)::value;
      gradient_of_input<kCount>(windows, count, pool.channels, out, at.stream);
    };
    switch (count) {  // loops are unrolled for the most common windows
      case 1:
        write(Constant<1>{});
        break;
      case 2:
        write(Constant<2>{});
        break;
      case 4:
        write(Constant<4>{});
        break;
      case 9:
        write(Constant<9>{});
        break;
      default:
        write(Constant<0>{});
    }
  }
#if defined(__AVX2__)
  if (at.stream) _mm_sfence();
#endif
}
