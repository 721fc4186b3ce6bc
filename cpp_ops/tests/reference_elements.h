// The addresses of elements, in plain loops.
#ifndef DFPJAX_TESTS_REFERENCE_ELEMENTS_H_
#define DFPJAX_TESTS_REFERENCE_ELEMENTS_H_

#include <cstdint>
#include <vector>

#include "contraction/contract.h"

namespace dfpjax {

// The offsets and window coordinates of an element. `add` moves it to an index of a dimension, or
// to flattened index i over `dims`.
struct Position {
  int64_t a, b, c, ea, eb;
  int64_t coord[kMaxWindows];

  void add(const Dim& dim, int64_t index);
  void add(const std::vector<Dim>& dims, int64_t i);
};

Position start(const Part& p, int64_t g);

// The exponent of the element at an offset.
int32_t exponent_at(const Grid& grid, const int32_t* exponents, int64_t offset);

// Sets an element of A, unless it is padding.
void element_a(const Part& p, const Operands& x, Position at, int32_t* value, int32_t* exponent);

}  // namespace dfpjax

#endif  // DFPJAX_TESTS_REFERENCE_ELEMENTS_H_
