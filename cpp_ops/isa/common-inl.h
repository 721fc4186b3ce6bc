// Shared by the kernels of every path. This and the other *-inl.h files are included inside an
// unnamed namespace: each path compiles its own copy with its own flags, and the linker must not
// merge any of it into code that runs on other CPUs.

inline int32_t join_words(int16_t low, int16_t high) {
  return static_cast<int32_t>(static_cast<uint32_t>(static_cast<uint16_t>(low)) |
                              static_cast<uint32_t>(static_cast<uint16_t>(high)) << 16);
}

// Vectors as wide as the registers of the path. GCC 12 turns comparisons of wider ones into scalar
// code.
#if defined(__AVX512F__)
inline constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
inline constexpr int kVectorBytes = 32;
#else
inline constexpr int kVectorBytes = 16;
#endif
using Floats = float __attribute__((vector_size(kVectorBytes)));
using Ints = int32_t __attribute__((vector_size(kVectorBytes)));
using Shorts = int16_t __attribute__((vector_size(kVectorBytes / 2)));
using Bytes = int8_t __attribute__((vector_size(kVectorBytes / 4)));
inline constexpr int kFloats = sizeof(Floats) / sizeof(float);

// A number that a generic lambda takes as a constant.
template <int N>
struct Constant {
  static constexpr int value = N;
};

template <class V, class T>
inline V load_as(const T* p) {
  V v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
template <class V, class T>
inline void store_as(T* p, V v) {
  __builtin_memcpy(p, &v, sizeof v);
}

// Eight numbers, whatever the path's vectors are.
using Eight = int32_t __attribute__((vector_size(32)));
using EightFloats = float __attribute__((vector_size(32)));

inline Eight eight(int32_t x) { return Eight{x, x, x, x, x, x, x, x}; }
inline Eight larger(Eight a, Eight b) { return a > b ? a : b; }
// Whether any lane of a comparison is true.
inline bool any(Eight mask) {
  using Parts = long long __attribute__((vector_size(32)));
  const auto parts = reinterpret_cast<Parts>(mask);
#if defined(__AVX__)
  return !__builtin_ia32_ptestz256(parts, parts);
#else
  return ((parts[0] | parts[1]) | (parts[2] | parts[3])) != 0;
#endif
}
