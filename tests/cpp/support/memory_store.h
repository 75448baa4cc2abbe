// A Store over a map, for ranks that are threads.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "comm/error.h"
#include "comm/store.h"

namespace fvd::test {

/// Thread-safe. One for all ranks.
class MemoryStore : public Store {
 public:
  void set(const std::string& key, const std::string& value) override {
    std::lock_guard lock(mutex_);
    values_[key] = value;
    changed_.notify_all();
  }

  std::vector<std::string> wait_for(const std::vector<std::string>& keys,
                                    std::chrono::milliseconds timeout) override {
    const auto deadline = std::chrono::steady_clock::now() + timeout;
    std::unique_lock lock(mutex_);
    std::string missing = missing_of(keys);
    while (!missing.empty()) {
      const auto status = changed_.wait_until(lock, deadline);
      missing = missing_of(keys);
      FVD_CHECK(missing.empty() || status == std::cv_status::no_timeout, kTimeout,
                "keys missing in the store after ", timeout.count(), " ms:", missing);
    }
    std::vector<std::string> values;
    for (const std::string& key : keys) values.push_back(values_.at(key));
    return values;
  }

  bool has(const std::string& key) override {
    std::lock_guard lock(mutex_);
    return values_.count(key) != 0;
  }

  std::int64_t add(const std::string& key, std::int64_t amount) override {
    std::lock_guard lock(mutex_);
    return counters_[key] += amount;
  }

  void remove(const std::string& key) override {
    std::lock_guard lock(mutex_);
    values_.erase(key);
  }

  /// How many values are there: what a group should have taken back when it has met.
  std::size_t size() const {
    std::lock_guard lock(mutex_);
    return values_.size();
  }

 private:
  std::string missing_of(const std::vector<std::string>& keys) const {
    std::string missing;
    for (const std::string& key : keys) {
      if (values_.count(key) == 0) missing += " " + key;
    }
    return missing;
  }

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::map<std::string, std::string> values_;
  std::map<std::string, std::int64_t> counters_;
};

}  // namespace fvd::test
