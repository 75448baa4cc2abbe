// A thread of the transport's own.
#pragma once

#include <pthread.h>
#include <signal.h>

#include <memory>
#include <thread>
#include <utility>

namespace fvd::shm {

/// Starts one that takes no signals: Ctrl-C belongs to the threads that wait. `name` has at most 15
/// characters. A pointer, so that a forked child can let go of it. @throws std::system_error
template <typename Body>
std::unique_ptr<std::thread> start_own_thread(const char* name, Body&& body) {
  struct Blocked {
    Blocked() {
      sigset_t all;
      sigfillset(&all);
      pthread_sigmask(SIG_SETMASK, &all, &before);  // the new thread inherits it
    }
    ~Blocked() { pthread_sigmask(SIG_SETMASK, &before, nullptr); }
    sigset_t before;
  };
  const Blocked blocked;
  auto thread = std::make_unique<std::thread>(std::forward<Body>(body));
  pthread_setname_np(thread->native_handle(), name);
  return thread;
}

}  // namespace fvd::shm
