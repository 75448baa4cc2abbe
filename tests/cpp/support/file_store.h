// A Store in a temporary directory, for ranks that are processes. One file per key.
#pragma once

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <thread>
#include <vector>

#include "comm/error.h"
#include "comm/store.h"

namespace fvd::test {

/// A directory that is gone, with all in it, when this object is.
class TemporaryDirectory {
 public:
  TemporaryDirectory() {
    std::string name = (std::filesystem::temp_directory_path() / "fvd-tests-XXXXXX").string();
    FVD_CHECK(mkdtemp(name.data()) != nullptr, kSystem, "mkdtemp ", name, ": ", errno_text(errno));
    path_ = name;
  }
  ~TemporaryDirectory() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TemporaryDirectory(const TemporaryDirectory&) = delete;
  TemporaryDirectory& operator=(const TemporaryDirectory&) = delete;

  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

/// Any number of objects, in any processes, over one directory.
class FileStore : public Store {
 public:
  explicit FileStore(std::filesystem::path directory) : directory_(std::move(directory)) {}

  void set(const std::string& key, const std::string& value) override {
    // Renamed into place, so that nobody reads half of it.
    const auto draft = file_of(key + ".draft." + std::to_string(getpid()));
    std::ofstream(draft, std::ios::binary) << value;
    std::filesystem::rename(draft, file_of(key));
  }

  std::vector<std::string> wait_for(const std::vector<std::string>& keys,
                                    std::chrono::milliseconds timeout) override {
    const auto deadline = std::chrono::steady_clock::now() + timeout;
    std::vector<std::string> values;
    for (const std::string& key : keys) {
      while (!has(key)) {
        FVD_CHECK(std::chrono::steady_clock::now() < deadline, kTimeout,
                  "key missing in the store after ", timeout.count(), " ms: ", key);
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
      }
      values.push_back(read(key));
    }
    return values;
  }

  bool has(const std::string& key) override { return std::filesystem::exists(file_of(key)); }

  std::int64_t add(const std::string& key, std::int64_t amount) override {
    const int lock = open(file_of("lock").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    FVD_SYS_CHECK(lock, "open the store's lock");
    FVD_SYS_CHECK(flock(lock, LOCK_EX), "lock the store");
    const std::int64_t sum = (has(key) ? std::stoll(read(key)) : 0) + amount;
    set(key, std::to_string(sum));
    close(lock);
    return sum;
  }

  void remove(const std::string& key) override { std::filesystem::remove(file_of(key)); }

 private:
  std::filesystem::path file_of(std::string key) const {
    for (char& letter : key) {
      if (letter == '/') letter = '+';
    }
    return directory_ / key;
  }

  std::string read(const std::string& key) const {
    std::ifstream file(file_of(key), std::ios::binary);
    return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  }

  std::filesystem::path directory_;
};

}  // namespace fvd::test
