// Shared by the kernels of every path. Included inside an unnamed namespace, like the other
// kernels_*.h: each path compiles its own copy with its own flags, and nothing of it may be merged
// by the linker into code that runs on other CPUs.

inline int32_t join_words(int16_t low, int16_t high) {
  return static_cast<int32_t>(static_cast<uint32_t>(static_cast<uint16_t>(low)) |
                              static_cast<uint32_t>(static_cast<uint16_t>(high)) << 16);
}
