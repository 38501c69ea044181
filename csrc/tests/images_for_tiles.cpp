// torch.ops.privimage_tests.for_tiles: the images that the tiles of a GPU's weight gradient read
// instead of those given. Copying them is PyTorch's work, so any device shows it.
#include "ops/conv_arguments.h"
#include "ops/op.h"

namespace privimage {
namespace {

// Of a convolution that keeps height and width, of [rows, inputs, height, width].
Tensor images_for_tiles(const Tensor images, int64_t outputs, int64_t taps) {
  const ConvAxis height{images.size(2), images.size(2), taps, 1, taps / 2, 1};
  const ConvAxis width{images.size(3), images.size(3), taps, 1, taps / 2, 1};
  const ConvGeometry shape{images.size(0), 1, 1, images.size(1), outputs, height, width};
  Tensor found = images;
  in_its_type_on_gpu(images, "images",
                     [&](auto zero) { found = for_tiles<decltype(zero)>(images, shape); });
  return found;
}

}  // namespace

STABLE_TORCH_LIBRARY(privimage_tests, library) {
  library.def("for_tiles(Tensor images, int outputs, int taps) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(privimage_tests, CompositeExplicitAutograd, library) {
  library.impl("for_tiles", TORCH_BOX(&images_for_tiles));
}

}  // namespace privimage
