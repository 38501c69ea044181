// privimage._host: what needs no tensor, for `privimage doctor` and for tests from Python.
#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>
#include <vector>

#include "cpu/noise.h"
#include "shared/chacha20.h"
#include "shared/gaussian.h"
#include "shared/grid.h"

namespace py = pybind11;

namespace {

using privimage::cpu::InstructionSet;

// Those that this machine has, the one that runs first.
py::list instruction_sets() {
  py::list names;
  for (const char* name : {"avx512f", "avx2", "baseline"}) {
    try {
      const InstructionSet set = privimage::cpu::instruction_set(name);
      names.insert(set == privimage::cpu::chosen_instruction_set() ? 0 : names.size(), name);
    } catch (const std::runtime_error&) {
      continue;
    }
  }
  return names;
}

uint32_t little_endian(const std::string& bytes, int word) {
  uint32_t value = 0;
  for (int i = 0; i < 4; ++i) {
    value |= static_cast<uint32_t>(static_cast<uint8_t>(bytes[4 * word + i])) << 8 * i;
  }
  return value;
}

privimage::Stream stream_of(const std::string& key, uint64_t step) {
  if (key.size() != 32) throw py::value_error("key: expected 32 bytes");
  privimage::Stream stream{{}, step};
  for (int i = 0; i < 8; ++i) stream.key[i] = little_endian(key, i);
  return stream;
}

// RFC 8439, 2.3, with its own arguments.
py::bytes chacha20_block(const std::string& key, uint32_t counter, const std::string& nonce) {
  if (nonce.size() != 12) throw py::value_error("nonce: expected 12 bytes");
  const uint64_t block = counter | static_cast<uint64_t>(little_endian(nonce, 0)) << 32;
  const uint64_t step = little_endian(nonce, 1) | static_cast<uint64_t>(little_endian(nonce, 2))
                                                      << 32;
  uint32_t words[16];
  privimage::chacha20_block(stream_of(key, step).key, block, step, words);
  std::string out;
  for (uint32_t word : words) {
    for (int i = 0; i < 4; ++i) out.push_back(static_cast<char>(word >> 8 * i));
  }
  return out;
}

privimage::Word word(uint64_t bits) {
  return {static_cast<uint32_t>(bits), static_cast<uint32_t>(bits >> 32)};
}

py::tuple gaussian_pair(uint64_t radius_word, uint64_t angle_word) {
  double first, second;
  privimage::gaussian_pair(word(radius_word), word(angle_word), first, second);
  return py::make_tuple(first, second);
}

py::bytes gaussian_integers(const std::string& instruction_set, const std::string& key,
                            uint64_t step, int64_t first, int64_t count, double std) {
  std::vector<int64_t> out(count);
  const privimage::cpu::Draw job{stream_of(key, step), first, count, std, out.data()};
  privimage::cpu::gaussian_integers(privimage::cpu::instruction_set(instruction_set), job,
                                    privimage::cpu::first_tile(first),
                                    privimage::cpu::end_tile(first, count));
  return py::bytes(reinterpret_cast<const char*>(out.data()), out.size() * sizeof out[0]);
}

}  // namespace

PYBIND11_MODULE(_host, module) {
  module.doc() = "Facts about the native build, and its arithmetic one value at a time.";
#ifdef PRIVIMAGE_CUDA
  module.attr("build") = "cuda";
#else
  module.attr("build") = "cpu";
#endif
  module.attr("compiler") = __VERSION__;
  module.attr("grid_bits") = privimage::kGridBits;
  module.def("instruction_sets", &instruction_sets, "Of this machine; the first one runs.");
  module.def(
      "grid_scale",
      [](double squared_norm, double max_grad_norm, double share, double stability) {
        return privimage::grid_scale(squared_norm,
                                     {max_grad_norm, share, stability > 0.0, stability});
      },
      py::arg("squared_norm"), py::arg("max_grad_norm"), py::arg("share") = 1.0,
      py::arg("stability") = 0.0, "See csrc/shared/grid.h; normalises with a stability.");
  module.def("grid_coordinate", py::overload_cast<double, double>(&privimage::grid_coordinate),
             "See csrc/shared/grid.h.");
  module.def("chacha20_block", &chacha20_block, "The block function of RFC 8439, 64 bytes.");
  module.def("gaussian_pair", &gaussian_pair, "See csrc/shared/gaussian.h.");
  module.def("round_to_integer", &privimage::round_to_integer, "See csrc/shared/gaussian.h.");
  module.def("natural_logarithm", &privimage::natural_logarithm, "See csrc/shared/gaussian.h.");
  module.def("gaussian_integers", &gaussian_integers,
             "The op of this name with the instruction set given: int64 as bytes.");
}
