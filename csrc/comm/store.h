// The seam to the rendezvous: c10d's store in production, a map in the thread tests.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <vector>

#include "comm/error.h"

namespace fvd {

/// Keys and values all ranks of a group see. Values come from outside: whoever reads them must
/// treat them as untrusted input.
class Store {
 public:
  virtual ~Store() = default;

  virtual void set(const std::string& key, const std::string& value) = 0;

  /// The values of all `keys`, in order, as soon as every one is there.
  /// @throws Error(kTimeout) naming the keys that are missing when `timeout` has passed.
  virtual std::vector<std::string> wait_for(const std::vector<std::string>& keys,
                                            std::chrono::milliseconds timeout) = 0;

  /// Whether `key` is there now.
  virtual bool has(const std::string& key) = 0;

  /// Adds `amount` to the counter at `key` (0 at first) and returns the sum.
  virtual std::int64_t add(const std::string& key, std::int64_t amount) = 0;

  virtual void remove(const std::string& key) = 0;
};

/// For keys that nobody reads any more: whoever keeps the store may have left with it by then.
inline void remove_if_possible(Store& store, const std::string& key) {
  try {
    store.remove(key);
  } catch (const Error&) {  // an entry stays in a store that is going, or gone
  }
}

}  // namespace fvd
