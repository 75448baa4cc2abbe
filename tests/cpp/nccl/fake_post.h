// How the fake NCCL's data changes hands.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace fvd::test {

using Bytes = std::vector<char>;

enum class Between {
  kThreads,    // of this process: in its memory
  kProcesses,  // through files, whose paths are the names; slow
};

/// Messages, each under a name of its own. Threads: all methods from any thread.
class Post {
 public:
  void share(Between between);
  void put(const std::string& name, std::string_view data);
  bool has(const std::string& name);
  Bytes take(const std::string& name);

  /// Until something may have changed.
  void wait_a_little();
};
Post& post();

}  // namespace fvd::test
