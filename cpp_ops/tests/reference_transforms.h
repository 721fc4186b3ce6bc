// The transforms of Winograd's algorithm, in plain loops.
#ifndef DFPJAX_TESTS_REFERENCE_TRANSFORMS_H_
#define DFPJAX_TESTS_REFERENCE_TRANSFORMS_H_

#include <cstddef>
#include <vector>

namespace dfpjax {

using Numbers = std::vector<float>;

// Along one axis, for tiles of `tile` outputs.
using TransformAlongAxis = Numbers (*)(int tile, const Numbers& d);
Numbers input_transform(int tile, const Numbers& d);
Numbers kernel_transform(int tile, const Numbers& d);
Numbers cotangent_transform(int tile, const Numbers& d);
Numbers output_transform(int tile, const Numbers& d);
Numbers taps_transform(int tile, const Numbers& d);

// Along one or two axes, the last one first. `cuts` tells whether values are cut between the two.
Numbers along_axes(TransformAlongAxis transform, int tile, size_t axes, bool cuts,
                   const Numbers& values);

// What the transformed products of each position are multiplied by.
Numbers normalizations(int tile, size_t axes);

}  // namespace dfpjax

#endif  // DFPJAX_TESTS_REFERENCE_TRANSFORMS_H_
