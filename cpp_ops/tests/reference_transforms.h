// The transforms of Winograd's algorithm, in plain loops.
#ifndef DFPJAX_TESTS_REFERENCE_TRANSFORMS_H_
#define DFPJAX_TESTS_REFERENCE_TRANSFORMS_H_

#include <cstddef>
#include <vector>

namespace dfpjax {

using Numbers = std::vector<float>;

// A tile along one axis.
struct TileShape {
  int outputs, taps;
  int points() const { return outputs + taps - 1; }
};

// Along one axis.
using TransformAlongAxis = Numbers (*)(TileShape tile, const Numbers& d);
Numbers input_transform(TileShape tile, const Numbers& d);
Numbers kernel_transform(TileShape tile, const Numbers& d);
Numbers cotangent_transform(TileShape tile, const Numbers& d);
Numbers output_transform(TileShape tile, const Numbers& d);
Numbers taps_transform(TileShape tile, const Numbers& d);

// Along one or two axes, the last one first. `cuts` tells whether values are cut between the two.
Numbers along_axes(TransformAlongAxis transform, TileShape tile, size_t axes, bool cuts,
                   const Numbers& values);

// What the transformed products of each position are multiplied by.
Numbers normalizations(int count, size_t axes);

}  // namespace dfpjax

#endif  // DFPJAX_TESTS_REFERENCE_TRANSFORMS_H_
