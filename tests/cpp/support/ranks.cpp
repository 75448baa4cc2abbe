#include "support/ranks.h"

#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <thread>

#include "comm/error.h"

namespace fvd::test {
namespace {

/// What `body` throws, in words; empty if nothing.
std::string error_of(const RankBody& body, int rank) {
  try {
    body(rank);
    return {};
  } catch (const Error& error) {
    return text(name(error.kind()), ": ", error.what());
  } catch (const std::exception& error) {
    return error.what();
  } catch (...) {
    return "something that is no std::exception";
  }
}

void write_all(int descriptor, const std::string& words) {
  std::size_t written = 0;
  while (written < words.size()) {
    const ssize_t step = write(descriptor, words.data() + written, words.size() - written);
    if (step < 0 && errno != EINTR) _exit(3);
    if (step > 0) written += static_cast<std::size_t>(step);
  }
}

std::string read_all(int descriptor) {
  std::string words;
  char buffer[4096];
  while (true) {
    const ssize_t step = read(descriptor, buffer, sizeof(buffer));
    if (step == 0) return words;
    if (step < 0 && errno != EINTR) return words + " (and the pipe failed)";
    if (step > 0) words.append(buffer, static_cast<std::size_t>(step));
  }
}

struct Child {
  pid_t pid = -1;
  int words = -1;  // the reading end of its pipe
};

Child start(int rank, const RankBody& body) {
  int ends[2];
  FVD_SYS_CHECK(pipe(ends), "pipe for rank ", rank);
  const pid_t pid = fork();
  FVD_SYS_CHECK(pid, "fork of rank ", rank);
  if (pid == 0) {
    close(ends[0]);
    write_all(ends[1], error_of(body, rank));
    _exit(0);
  }
  close(ends[1]);
  return {pid, ends[0]};
}

std::string end_of(const Child& child) {
  std::string words = read_all(child.words);
  close(child.words);
  int status = 0;
  while (waitpid(child.pid, &status, 0) < 0 && errno == EINTR) {
  }
  if (WIFSIGNALED(status)) words += text(" (ended by signal ", WTERMSIG(status), ")");
  if (WIFEXITED(status) && WEXITSTATUS(status) != 0)
    words += text(" (ended with exit code ", WEXITSTATUS(status), ")");
  return words;
}

}  // namespace

std::vector<Outcome> run_threads(int size, const RankBody& body) {
  std::vector<Outcome> outcomes(static_cast<std::size_t>(size));
  std::vector<std::thread> threads;
  for (int rank = 0; rank < size; ++rank) {
    Outcome& outcome = outcomes[static_cast<std::size_t>(rank)];
    outcome.rank = rank;
    threads.emplace_back([&body, &outcome, rank] { outcome.error = error_of(body, rank); });
  }
  for (std::thread& thread : threads) thread.join();
  return outcomes;
}

std::vector<Outcome> run_forks(int size, const RankBody& body) {
  std::vector<Child> children;
  for (int rank = 0; rank < size; ++rank) children.push_back(start(rank, body));
  std::vector<Outcome> outcomes;
  for (int rank = 0; rank < size; ++rank)
    outcomes.push_back({rank, end_of(children[static_cast<std::size_t>(rank)])});
  return outcomes;
}

std::string errors_of(const std::vector<Outcome>& outcomes) {
  std::string words;
  for (const Outcome& outcome : outcomes) {
    if (!outcome.error.empty()) words += text("\nrank ", outcome.rank, ": ", outcome.error);
  }
  return words;
}

}  // namespace fvd::test
