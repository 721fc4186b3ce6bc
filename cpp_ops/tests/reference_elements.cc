#include "tests/reference_elements.h"

namespace dfpjax {

void Position::add(const Dim& dim, int64_t index) {
  a += index * dim.stride_a;
  b += index * dim.stride_b;
  c += index * dim.stride_c;
  ea += index * dim.exp_a;
  eb += index * dim.exp_b;
  if (dim.window >= 0) coord[dim.window] += index * dim.coef;
}

void Position::add(const std::vector<Dim>& dims, int64_t i) {
  for (size_t d = dims.size(); d-- > 0;) {
    add(dims[d], i % dims[d].extent);
    i /= dims[d].extent;
  }
}

Position start(const Part& p, int64_t g) {
  Position at{p.base_a, p.base_b, p.base_c, 0, 0, {}};
  for (size_t w = 0; w < p.windows.size(); ++w) at.coord[w] = p.windows[w].offset;
  at.add(p.g, g);
  return at;
}

int32_t exponent_at(const Grid& grid, const int32_t* exponents, int64_t offset) {
  const int64_t outer = offset / grid.outer, row = offset % grid.outer / grid.columns;
  const int64_t column = offset % grid.columns;
  return exponents[(outer * grid.block_row_count() + row / grid.block_rows) *
                       grid.block_column_count() +
                   column / grid.block_columns];
}

void element_a(const Part& p, const Operands& x, Position at, int32_t* value, int32_t* exponent) {
  for (size_t w = 0; w < p.windows.size(); ++w) {
    if (at.coord[w] < 0 || at.coord[w] >= p.windows[w].size) return;
    at.a += at.coord[w] * p.windows[w].stride_a;
  }
  *value = x.a[at.a];
  if (p.in_blocks) *exponent = exponent_at(p.grid_a, x.ea, at.a);
}

}  // namespace dfpjax
