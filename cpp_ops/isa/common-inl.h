// Shared by the kernels of every path. This and the other *-inl.h files are included inside an
// unnamed namespace: each path compiles its own copy with its own flags, and the linker must not
// merge any of it into code that runs on other CPUs.

inline int32_t join_words(int16_t low, int16_t high) {
  return static_cast<int32_t>(static_cast<uint32_t>(static_cast<uint16_t>(low)) |
                              static_cast<uint32_t>(static_cast<uint16_t>(high)) << 16);
}

// Vectors that the compiler splits into the registers of the path.
using Floats = float __attribute__((vector_size(64)));
using Ints = int32_t __attribute__((vector_size(64)));
using Shorts = int16_t __attribute__((vector_size(32)));
using Bytes = int8_t __attribute__((vector_size(16)));
inline constexpr int kFloats = sizeof(Floats) / sizeof(float);

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
