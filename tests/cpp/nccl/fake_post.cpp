#include "nccl/fake_post.h"

#include <unistd.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <filesystem>
#include <fstream>
#include <map>
#include <mutex>
#include <thread>

namespace fvd::test {
namespace {

struct Memory {
  std::mutex mutex;
  std::condition_variable changed;
  std::map<std::string, Bytes> messages;
  std::atomic<bool> files{false};
};
Memory& memory() {
  static auto* const memory = new Memory;  // streams may outlive main
  return *memory;
}

}  // namespace

Post& post() {
  static Post post;
  return post;
}

void Post::share(Between between) { memory().files = between == Between::kProcesses; }

void Post::put(const std::string& name, std::string_view data) {
  Memory& m = memory();
  if (m.files) {
    std::ofstream(name + ".draft", std::ios::binary)
        .write(data.data(), static_cast<std::streamsize>(data.size()));
    std::filesystem::rename(name + ".draft", name);
    return;
  }
  const std::lock_guard lock(m.mutex);
  m.messages[name].assign(data.begin(), data.end());
  m.changed.notify_all();
}

bool Post::has(const std::string& name) {
  Memory& m = memory();
  if (m.files) return access(name.c_str(), F_OK) == 0;
  const std::lock_guard lock(m.mutex);
  return m.messages.contains(name);
}

Bytes Post::take(const std::string& name) {
  Memory& m = memory();
  Bytes bytes;
  if (m.files) {
    bytes.resize(std::filesystem::file_size(name));
    std::ifstream(name, std::ios::binary)
        .read(bytes.data(), static_cast<std::streamsize>(bytes.size()));
    std::filesystem::remove(name);
    return bytes;
  }
  const std::lock_guard lock(m.mutex);
  const auto message = m.messages.find(name);
  bytes = std::move(message->second);
  m.messages.erase(message);
  m.changed.notify_all();
  return bytes;
}

void Post::wait_a_little() {
  Memory& m = memory();
  if (m.files) {
    std::this_thread::sleep_for(std::chrono::microseconds{100});
    return;
  }
  // Something may have come since the caller looked: not for long.
  std::unique_lock lock(m.mutex);
  m.changed.wait_for(lock, std::chrono::microseconds{200});
}

}  // namespace fvd::test
