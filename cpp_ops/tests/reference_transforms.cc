#include "tests/reference_transforms.h"

#include <cmath>
#include <cstdint>
#include <cstring>

namespace dfpjax {
namespace {

// Clears the low 8 bits.
float cut(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  bits &= ~uint32_t{255};
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

// The points of an axis except infinity.
std::vector<double> finite_points(int points) {
  if (points == 4) return {0, 1, -1};
  return {0, 5.0 / 8, -5.0 / 8, 3.0 / 2, -3.0 / 2};
}

}  // namespace

Numbers input_transform(TileShape tile, const Numbers& d) {
  if (tile.points() == 4) return {d[2] - d[0], d[1] + d[2], d[2] - d[1], d[3] - d[1]};
  const float e = d[4] - 9.0f / 4 * d[2], f = 5.0f / 8 * d[3] - 45.0f / 32 * d[1];
  const float g = d[4] - 25.0f / 64 * d[2], h = 3.0f / 2 * d[3] - 75.0f / 128 * d[1];
  return {225.0f / 256 * d[0] + (d[4] - 169.0f / 64 * d[2]), e + f, e - f, g + h, g - h,
          225.0f / 256 * d[1] + (d[5] - 169.0f / 64 * d[3])};
}

Numbers kernel_transform(TileShape tile, const Numbers& d) {
  if (tile.points() == 4) return {d[0], (d[0] + d[2]) + d[1], (d[0] + d[2]) - d[1], d[2]};
  if (tile.taps == 5) {
    const float e = d[0] + 25.0f / 64 * cut(d[2] + 25.0f / 64 * d[4]);
    const float f = 5.0f / 8 * cut(d[1] + 25.0f / 64 * d[3]);
    const float g = d[0] + 9.0f / 4 * cut(d[2] + 9.0f / 4 * d[4]);
    const float h = 3.0f / 2 * cut(d[1] + 9.0f / 4 * d[3]);
    return {d[0], e + f, e - f, g + h, g - h, d[4]};
  }
  const float e = d[0] + 25.0f / 64 * d[2], f = 5.0f / 8 * d[1];
  const float g = d[0] + 9.0f / 4 * d[2], h = 3.0f / 2 * d[1];
  return {d[0], e + f, e - f, g + h, g - h, d[2]};
}

Numbers cotangent_transform(TileShape tile, const Numbers& d) {
  if (tile.points() == 4) return {d[0], d[0] + d[1], d[0] - d[1], d[1]};
  if (tile.taps == 5) {
    const float f = 5.0f / 8 * d[1], h = 3.0f / 2 * d[1];
    return {d[0], d[0] + f, d[0] - f, d[0] + h, d[0] - h, d[1]};
  }
  const float e = d[0] + 25.0f / 64 * d[2], f = 5.0f / 8 * d[1] + 125.0f / 512 * d[3];
  const float g = d[0] + 9.0f / 4 * d[2], h = 3.0f / 2 * d[1] + 27.0f / 8 * d[3];
  return {d[0], e + f, e - f, g + h, g - h, d[3]};
}

Numbers output_transform(TileShape tile, const Numbers& d) {
  if (tile.points() == 4) return {d[0] + (d[1] + d[2]), (d[1] - d[2]) + d[3]};
  const float e = cut(d[1] + d[2]), f = cut(d[1] - d[2]);
  const float g = cut(d[3] + d[4]), h = cut(d[3] - d[4]);
  if (tile.taps == 5) return {d[0] + (e + g), (5.0f / 8 * f + 3.0f / 2 * h) + d[5]};
  return {d[0] + (e + g), 5.0f / 8 * f + 3.0f / 2 * h, 25.0f / 64 * e + 9.0f / 4 * g,
          (125.0f / 512 * f + 27.0f / 8 * h) + d[5]};
}

Numbers taps_transform(TileShape tile, const Numbers& d) {
  if (tile.points() == 4) return {d[0] + (d[1] + d[2]), d[1] - d[2], (d[1] + d[2]) + d[3]};
  const float e = cut(d[1] + d[2]), f = cut(d[1] - d[2]);
  const float g = cut(d[3] + d[4]), h = cut(d[3] - d[4]);
  if (tile.taps == 5)
    return {d[0] + (e + g), 5.0f / 8 * f + 3.0f / 2 * h, 25.0f / 64 * e + 9.0f / 4 * g,
            125.0f / 512 * f + 27.0f / 8 * h,
            (25.0f / 64 * cut(25.0f / 64 * e) + 81.0f / 16 * g) + d[5]};
  return {d[0] + (e + g), 5.0f / 8 * f + 3.0f / 2 * h, (25.0f / 64 * e + 9.0f / 4 * g) + d[5]};
}

Numbers along_axes(TransformAlongAxis transform, TileShape tile, size_t axes, bool cuts,
                   const Numbers& values) {
  if (axes == 1) return transform(tile, values);
  const auto extent = static_cast<size_t>(std::lround(std::sqrt(values.size())));
  std::vector<Numbers> columns;
  for (size_t y = 0; y < extent; ++y) {
    const auto row = values.begin() + static_cast<std::ptrdiff_t>(y * extent);
    const Numbers along_x = transform(tile, {row, row + static_cast<std::ptrdiff_t>(extent)});
    columns.resize(along_x.size());
    for (size_t x = 0; x < along_x.size(); ++x)
      columns[x].push_back(cuts ? cut(along_x[x]) : along_x[x]);
  }
  Numbers result;
  for (size_t x = 0; x < columns.size(); ++x) {
    const Numbers along_y = transform(tile, columns[x]);
    result.resize(columns.size() * along_y.size());
    for (size_t y = 0; y < along_y.size(); ++y) result[y * columns.size() + x] = along_y[y];
  }
  return result;
}

Numbers normalizations(int count, size_t axes) {
  std::vector<double> of_axis;
  const std::vector<double> points = finite_points(count);
  for (double x : points) {
    double product = 1;
    for (double other : points)
      if (other != x) product *= x - other;
    of_axis.push_back(product);
  }
  of_axis.push_back(1);  // infinity
  Numbers result;
  for (double y : axes == 2 ? of_axis : std::vector<double>{1})
    for (double x : of_axis) result.push_back(static_cast<float>(1 / (y * x)));
  return result;
}

}  // namespace dfpjax
