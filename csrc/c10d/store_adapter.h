// c10d's rendezvous store behind the project's Store.
#pragma once

#include <c10/util/Exception.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <exception>
#include <string>
#include <thread>
#include <torch/csrc/distributed/c10d/Store.hpp>
#include <utility>
#include <vector>

#include "c10d/host.h"
#include "comm/error.h"
#include "comm/store.h"

namespace fvd::c10d_ {

/// For a rendezvous, and for a device's communicator that asks for last words when its group
/// breaks: from any thread, as far as torch's stores allow it (they do). May call into Python (a
/// store written there), so the caller must not hold the interpreter's lock.
class StoreAdapter final : public Store {
  // Without the C++ backtrace that c10's what() carries.
  static std::string reason(const std::exception& error) {
    const auto* from_torch = dynamic_cast<const c10::Error*>(&error);
    return from_torch != nullptr ? from_torch->what_without_backtrace() : error.what();
  }

  template <typename Body>
  static auto guarded(const char* action, const std::string& key, Body&& body) {
    try {
      return body();
    } catch (const Error&) {
      throw;
    } catch (const std::exception& error) {
      throw Error(Kind::kSystem, text("the rendezvous store could not ", action, " \"", key,
                                      "\": ", reason(error)));
    }
  }

 public:
  /// `host` must outlive this object.
  StoreAdapter(c10::intrusive_ptr<::c10d::Store> store, const Host& host)
      : store_(std::move(store)), host_(host) {}

  void set(const std::string& key, const std::string& value) override {
    guarded("write key", key, [&] { store_->set(key, value); });
  }

  std::vector<std::string> wait_for(const std::vector<std::string>& keys,
                                    std::chrono::milliseconds timeout) override {
    if (keys.empty()) return {};
    wait(keys, timeout);
    std::vector<std::string> values;
    values.reserve(keys.size());
    guarded("read key", keys.front(), [&] {
      if (store_->hasExtendedApi()) {
        for (const auto& bytes : store_->multiGet(keys)) values.push_back(bounded(bytes));
      } else {
        for (const auto& key : keys) values.push_back(bounded(store_->get(key)));
      }
    });
    FVD_CHECK(values.size() == keys.size(), kSystem, "the rendezvous store answered ",
              values.size(), " values to ", keys.size(), " keys");
    return values;
  }

  std::int64_t add(const std::string& key, std::int64_t amount) override {
    return guarded("count up key", key, [&] { return store_->add(key, amount); });
  }

  bool has(const std::string& key) override {
    return guarded("look for key", key, [&] { return store_->check({key}); });
  }

  void remove(const std::string& key) override {
    guarded("remove key", key, [&] { store_->deleteKey(key); });
  }

 private:
  // Asks again and again, because a store's own wait cannot be interrupted and logs its timeouts.
  void wait(const std::vector<std::string>& keys, std::chrono::milliseconds timeout) {
    using Clock = std::chrono::steady_clock;
    const auto end = Clock::now() + timeout;
    const auto* interrupt = host_.interrupt_hook();
    // Grows by a quarter, so that at most a quarter of the time waited is added.
    std::chrono::nanoseconds pause = std::chrono::microseconds{100};
    while (!guarded("look for key", keys.front(), [&] { return store_->check(keys); })) {
      if (Clock::now() >= end) throw_missing(keys, timeout);
      if (interrupt != nullptr) (*interrupt)();
      std::this_thread::sleep_for(pause);
      pause = std::min<std::chrono::nanoseconds>(pause * 5 / 4, std::chrono::milliseconds{10});
    }
  }

  // A rank's entry is a few hundred bytes; whoever sends more is not one of ours.
  static constexpr std::size_t kMaxValueBytes = 64 << 10;

  static std::string bounded(const std::vector<std::uint8_t>& bytes) {
    FVD_CHECK(bytes.size() <= kMaxValueBytes, kSystem, "the rendezvous store holds a value of ",
              bytes.size(), " bytes where at most ", kMaxValueBytes, " are expected");
    return {bytes.begin(), bytes.end()};
  }

  [[noreturn]] void throw_missing(const std::vector<std::string>& keys,
                                  std::chrono::milliseconds timeout) {
    std::string missing;
    for (const auto& key : keys)
      if (!has(key)) missing += text(missing.empty() ? "\"" : ", \"", key, "\"");
    throw Error(Kind::kTimeout,
                text("waited ", timeout.count(), " ms for the other ranks; missing in the store: ",
                     missing.empty() ? "nothing any more" : missing));
  }

  c10::intrusive_ptr<::c10d::Store> store_;
  const Host& host_;
};

}  // namespace fvd::c10d_
