// privimage._host: what needs no tensor, for `privimage doctor` and for tests from Python.
#include <pybind11/pybind11.h>

#include <string>

#include "shared/grid.h"

namespace {

std::string instruction_set() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f")) return "avx512f";
  if (__builtin_cpu_supports("avx2")) return "avx2";
#endif
  return "baseline";
}

}  // namespace

PYBIND11_MODULE(_host, module) {
  module.doc() = "Facts about the native build.";
#ifdef PRIVIMAGE_CUDA
  module.attr("build") = "cuda";
#else
  module.attr("build") = "cpu";
#endif
  module.attr("compiler") = __VERSION__;
  module.attr("grid_bits") = privimage::kGridBits;
  module.def("instruction_set", &instruction_set, "The best one this machine has of those built.");
  module.def("grid_scale", &privimage::grid_scale, "See csrc/shared/grid.h.");
  module.def("grid_coordinate", &privimage::grid_coordinate, "See csrc/shared/grid.h.");
}
