// A thread of the library's own.
#pragma once

#include <pthread.h>

#include <csignal>
#include <thread>
#include <utility>

namespace fvd {

/// Starts one that takes no signals: Ctrl-C belongs to the threads that wait. `name` has at most 15
/// characters. @throws std::system_error
template <typename Body>
std::thread start_own_thread(const char* name, Body&& body) {
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
  std::thread thread(std::forward<Body>(body));
  pthread_setname_np(thread.native_handle(), name);
  return thread;
}

/// Joins one that has been told to end; on that thread itself it lets it end by itself.
inline void end_own_thread(std::thread thread) {
  if (!thread.joinable()) return;
  if (thread.get_id() == std::this_thread::get_id()) {
    thread.detach();
  } else {
    thread.join();
  }
}

}  // namespace fvd
