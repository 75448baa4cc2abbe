// The part of a Store below a prefix, for one of several groups that meet through it.
#pragma once

#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "comm/store.h"

namespace fvd {

/// Shares the store. One thread at a time.
class PrefixedStore final : public Store {
 public:
  PrefixedStore(std::shared_ptr<Store> store, std::string prefix)
      : store_(std::move(store)), prefix_(std::move(prefix)) {}

  void set(const std::string& key, const std::string& value) override {
    store_->set(noted(key), value);
  }
  std::vector<std::string> wait_for(const std::vector<std::string>& keys,
                                    std::chrono::milliseconds timeout) override {
    std::vector<std::string> whole;
    whole.reserve(keys.size());
    for (const auto& key : keys) whole.push_back(prefix_ + key);
    return store_->wait_for(whole, timeout);
  }
  bool has(const std::string& key) override { return store_->has(prefix_ + key); }
  std::int64_t add(const std::string& key, std::int64_t amount) override {
    return store_->add(noted(key), amount);
  }
  void remove(const std::string& key) override {
    written_.erase(prefix_ + key);
    store_->remove(prefix_ + key);
  }

  /// Takes back what was written through this object and is still there: for the end of a group
  /// that had all its ranks, so that a store which outlives many groups does not fill.
  void remove_written() {
    for (const auto& key : written_) remove_if_possible(*store_, key);
    written_.clear();
  }

 private:
  std::string noted(const std::string& key) { return *written_.insert(prefix_ + key).first; }

  const std::shared_ptr<Store> store_;
  const std::string prefix_;
  std::set<std::string> written_;  // whole keys
};

}  // namespace fvd
