// The Python module _C: introspection, and hooks for tests. The only file that knows Python, and it knows no torch.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "cpu/kernels.h"
#include "cpu/memory.h"
#include "cuda/tile.h"
#include "logistic.h"

namespace py = pybind11;
using namespace fused_logistic;

namespace {

std::vector<std::string> isa_names(bool supported) {
  std::vector<std::string> names;
  for (const Isa& isa : isas) {
    if (isa.kernel != nullptr && (!supported || isa.supported())) names.push_back(isa.name);
  }
  return names;
}

// Applies a scalar function of logistic.h to an array, in place: addresses come as integers from numpy.
template <class T, class Function>
void apply(uintptr_t address, int64_t count, Function function) {
  T* const values = reinterpret_cast<T*>(address);
  for (int64_t i = 0; i < count; ++i) values[i] = function(values[i]);
}

// A Problem comes as its bytes: the tests that execute the PTX hand the same bytes to the kernels.
py::dict cuda_plan(const std::string& bytes, int output) {
  Problem problem;
  if (bytes.size() != sizeof(problem)) {
    throw std::invalid_argument("cuda_plan: expected a Problem of " + std::to_string(sizeof(problem)) + " bytes, got " +
                                std::to_string(bytes.size()));
  }
  std::memcpy(&problem, bytes.data(), sizeof(problem));
  const Plan p = plan(problem, Output(output));
  const Layouts layouts = layouts_of(problem);
  return py::dict(py::arg("terms") = int(p.terms), py::arg("typed") = p.typed, py::arg("block") = kThreads,
                  py::arg("grid") = p.grid, py::arg("partials") = p.partials, py::arg("finish") = p.finish,
                  py::arg("layouts") = py::bytes(reinterpret_cast<const char*>(&layouts), sizeof(layouts)));
}

// Likewise a TileLaunch, which comes back as the kernels take it.
py::dict cuda_tile_plan(const std::string& bytes, int output) {
  TileLaunch launch;
  if (bytes.size() != sizeof(launch)) {
    throw std::invalid_argument("cuda_tile_plan: expected a TileLaunch of " + std::to_string(sizeof(launch)) +
                                " bytes, got " + std::to_string(bytes.size()));
  }
  std::memcpy(&launch, bytes.data(), sizeof(launch));
  const TilePlan p = tile_plan(launch, Output(output));
  return py::dict(py::arg("output") = int(p.output), py::arg("terms") = int(p.terms), py::arg("typed") = p.typed,
                  py::arg("block") = kTileThreads, py::arg("grid") = tile_grid(launch),
                  py::arg("finish_grid") = finish_tile_grid(launch),
                  py::arg("launch") = py::bytes(reinterpret_cast<const char*>(&launch), sizeof(launch)));
}
py::dict cuda_lie(uintptr_t address, int dtype, int64_t size, int64_t row, int64_t column) {
  const Lie lie = lie_of({reinterpret_cast<const void*>(address), DType(dtype), 1, size}, row, column);
  return py::dict(py::arg("row") = lie.row, py::arg("column") = lie.column, py::arg("reading") = int(lie.reading));
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Introspection and test hooks of fused_logistic; the ops are in torch.ops.fused_logistic.";
  m.def("isa", [] { return std::string(isa().name); }, "The instruction set in use.");
  m.def("isas_built", [] { return isa_names(false); }, "The instruction sets in this binary, fastest first.");
  m.def("isas_supported", [] { return isa_names(true); }, "Those of them that this CPU supports.");
  m.def(
      "set_isa", [](const std::string& name) { set_isa(name.c_str()); }, py::arg("name"),
      "Use another instruction set from now on (tests and benchmarks only).");
  m.def("empty_cache", &empty_cache, "Return the memory kept for the next large result to the system.");
  m.def("cached_bytes", &cached_bytes, "How many bytes are kept for the next large results.");
  m.def(
      "cuda_plan", [](const py::bytes& problem, int output) { return cuda_plan(problem, output); }, py::arg("problem"),
      py::arg("output"), "The launch of a CUDA kernel (cuda/plan.h).");
  m.def(
      "cuda_tile_plan", [](const py::bytes& launch, int output) { return cuda_tile_plan(launch, output); },
      py::arg("launch"), py::arg("output"), "The launch of a CUDA kernel for a tile of a layer (cuda/tile.h).");
  m.def("cuda_lie", &cuda_lie, py::arg("address"), py::arg("dtype"), py::arg("size"), py::arg("row"), py::arg("column"),
        "How such a kernel reads an operand of those strides.");
  m.attr("CHUNK") = kChunk;
  m.attr("LANES") = kLanes;
  m.attr("COMPILER") = __VERSION__;
#if defined(FL_CUDA_ARCHS)  // by setup.py, where it builds the CUDA kernels
  m.attr("CUDA_ARCHS") = FL_CUDA_ARCHS;
  m.attr("CUDA_VERSION") = FL_CUDA_VERSION;
#else
  m.attr("CUDA_ARCHS") = py::none();
  m.attr("CUDA_VERSION") = py::none();
#endif
  m.def(
      "exp_nonpositive_",
      [](uintptr_t x, int64_t n, bool is_double) {
        is_double ? apply<double>(x, n, exp_nonpositive<double>) : apply<float>(x, n, exp_nonpositive<float>);
      },
      py::arg("address"), py::arg("count"), py::arg("is_double"), "exp of an array of non-positive values, in place.");
  m.def(
      "log1p_unit_",
      [](uintptr_t x, int64_t n, bool is_double) {
        is_double ? apply<double>(x, n, log1p_unit<double>) : apply<float>(x, n, log1p_unit<float>);
      },
      py::arg("address"), py::arg("count"), py::arg("is_double"), "log1p of an array of values in [0, 1], in place.");
  isa();  // an unusable FUSED_LOGISTIC_ISA is an error now, not at the first call
}
