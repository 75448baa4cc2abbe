#include "bind_communicator.h"

#include <pybind11/stl.h>
#include <torch/csrc/utils/pybind.h>

#include <chrono>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "bind_buffer.h"
#include "comm/communicator.h"
#include "face.h"
#include "shm/meetings.h"

namespace fvd {
namespace {

using c10d_::CommunicatorFactory;
using c10d_::Host;
using std::chrono::milliseconds;

/// The ranks of `id` meet. Each may come once: two groups on one id would read each other's words.
std::unique_ptr<Face> meet(const CommunicatorFactory& factory, const Host& host,
                           const std::string& id, int rank, int size, std::string name,
                           double seconds) {
  return unlocked([&] {
    auto store = shm::open_meeting(id);
    FVD_CHECK(store->add("came/" + std::to_string(rank), 1) == 1, kInvalidArgument, "rank ", rank,
              " has used this unique id already; one id makes one communicator, so get another");
    // From here on the id is of no use to anybody else, however this ends.
    struct AtTheEnd {
      const std::string& id;
      ~AtTheEnd() { shm::close_meeting(id); }
    } const at_the_end{id};
    if (name.empty()) name = shm::name_of_meeting(id);
    const milliseconds timeout(static_cast<std::int64_t>(seconds * 1000));
    return std::make_unique<Face>(factory, host, std::move(store), rank, size, std::move(name),
                                  timeout);
  });
}

ReduceKind kind_of(const std::string& op) {
  for (const ReduceKind kind : {ReduceKind::kSum, ReduceKind::kProduct, ReduceKind::kMax,
                                ReduceKind::kMin, ReduceKind::kAvg, ReduceKind::kPremulSum}) {
    if (name(kind) == op) return kind;
  }
  throw py::value_error("no reduction is called " + op);
}

void bind_classes(py::module_& module) {
  py::class_<Reduction>(module, "Reduction", "How contributions are combined. See _C.pyi.")
      .def(py::init([](const std::string& op, double factor, std::uint64_t multiplier) {
             return Reduction{{kind_of(op), factor}, multiplier};
           }),
           py::arg("op"), py::arg("factor") = 1.0, py::arg("multiplier") = 1);
  py::class_<PendingTransfer>(module, "Transfer", "A send or receive under way. See _C.pyi.")
      .def("wait", &PendingTransfer::wait);
}

}  // namespace

void bind_communicator(py::module_& module, CommunicatorFactory factory, const Host& (*host)()) {
  bind_classes(module);
  py::class_<Face>(module, "Communicator", "One rank's place in a group. See _C.pyi.")
      .def(py::init([factory = std::move(factory), host](const py::bytes& id, int rank, int size,
                                                         std::string name, double timeout) {
             return meet(factory, host(), id, rank, size, std::move(name), timeout);
           }),
           py::arg("unique_id"), py::arg("rank"), py::arg("size"), py::arg("name"),
           py::arg("timeout"))
      .def_property_readonly("name", &Face::name)
      .def("split", &Face::split, py::arg("place"), py::arg("rank"), py::arg("size"),
           py::arg("name"))
      .def("reduce", &Face::reduce, py::arg("send"), py::arg("recv"), py::arg("count"),
           py::arg("reduction"), py::arg("root"), py::arg("stream"))
      .def("broadcast", &Face::broadcast, py::arg("send"), py::arg("recv"), py::arg("root"),
           py::arg("stream"))
      .def("gather", &Face::gather, py::arg("send"), py::arg("recv"), py::arg("root"),
           py::arg("stream"))
      .def("scatter", &Face::scatter, py::arg("send"), py::arg("recv"), py::arg("root"),
           py::arg("stream"))
      .def("reduce_scatter", &Face::reduce_scatter, py::arg("send"), py::arg("recv"),
           py::arg("count"), py::arg("reduction"), py::arg("stream"))
      .def("all_to_all", &Face::all_to_all, py::arg("send"), py::arg("recv"), py::arg("count"),
           py::arg("stream"))
      .def("send", &Face::send, py::arg("buffer"), py::arg("peer"), py::arg("stream"))
      .def("recv", &Face::recv, py::arg("buffer"), py::arg("peer"), py::arg("stream"))
      .def("copy", &Face::copy, py::arg("send"), py::arg("recv"), py::arg("stream"))
      .def("abort", &Face::abort, py::arg("reason"))
      .def("close", &Face::close);
  module.def("create_unique_id",
             [] { return py::bytes(unlocked([] { return shm::create_meeting(); })); });
}

}  // namespace fvd
