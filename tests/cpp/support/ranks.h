// Runs one body per rank, as threads or as forked processes, and tells how each of them ended.
#pragma once

#include <exception>
#include <functional>
#include <string>
#include <vector>

namespace fvd::test {

/// How one rank ended; empty: well. A text and not an exception, so that it crosses a pipe.
struct Outcome {
  int rank = 0;
  std::string error;
};

using RankBody = std::function<void(int rank)>;

/// Every rank in a thread of this process.
std::vector<Outcome> run_threads(int size, const RankBody& body);

/// Every rank in a child process, which ends without running this process's destructors. To be
/// called while this process has one thread.
std::vector<Outcome> run_forks(int size, const RankBody& body);

/// "rank 1: ...\nrank 3: ..."; empty if all ended well.
std::string errors_of(const std::vector<Outcome>& outcomes);

}  // namespace fvd::test
