// What the process around the backend lends it, so that this room needs no Python.
#pragma once

#include <chrono>
#include <functional>

namespace fvd::c10d_ {

/// How often a waiting thread looks for Ctrl-C: unnoticeable to a person, nothing to the machine.
constexpr std::chrono::milliseconds kInterruptInterval{100};

/// One object per process; it outlives every group. interpreter.cpp implements it.
class Host {
 public:
  virtual ~Host() = default;

  /// What a call waiting on the calling thread should run now and then: it throws if the user wants
  /// the call to end (Ctrl-C). Null on threads that receive no such wish. Takes no lock.
  virtual const std::function<void()>* interrupt_hook() const noexcept = 0;

  /// Runs `body` without the interpreter's lock, whether or not the calling thread holds it.
  /// For whatever joins a thread, which may itself be waiting for that lock.
  virtual void run_unlocked(const std::function<void()>& body) const = 0;
};

}  // namespace fvd::c10d_
