#include "interpreter.h"

#include <pybind11/pybind11.h>

namespace fvd {
namespace {

namespace py = pybind11;

/// Ctrl-C reaches Python's main thread only; no other thread is to ask for the lock in a wait.
class Interpreter final : public c10d_::Host {
 public:
  Interpreter()
      : main_thread_(py::module_::import("threading")
                         .attr("main_thread")()
                         .attr("ident")
                         .cast<unsigned long>()) {}

  const std::function<void()>* interrupt_hook() const noexcept override {
    return PyThread_get_thread_ident() == main_thread_ ? &hook_ : nullptr;
  }

  void run_unlocked(const std::function<void()>& body) const override {
    if (Py_IsInitialized() != 0 && PyGILState_Check() != 0) {
      const py::gil_scoped_release unlocked;
      body();
    } else {
      body();
    }
  }

 private:
  const unsigned long main_thread_;
  const std::function<void()> hook_ = [] {
    const py::gil_scoped_acquire lock;
    if (PyErr_CheckSignals() != 0) throw py::error_already_set();
  };
};

}  // namespace

const c10d_::Host& interpreter() {
  static const auto* instance = new Interpreter;
  return *instance;
}

}  // namespace fvd
