#include "shm/meetings.h"

#include <unistd.h>

#include <map>
#include <mutex>

#include "shm/shared_store.h"

namespace fvd::shm {
namespace {

/// Those that this process has made and nobody has closed.
class Meetings {
 public:
  void add(const std::string& id, std::shared_ptr<SharedStore> store) {
    const std::lock_guard lock(mutex_);
    forget_the_parents();
    stores_[id] = std::move(store);
  }

  std::shared_ptr<SharedStore> find(const std::string& id) {
    const std::lock_guard lock(mutex_);
    forget_the_parents();
    const auto found = stores_.find(id);
    return found == stores_.end() ? nullptr : found->second;
  }

  void remove(const std::string& id) {
    const std::lock_guard lock(mutex_);
    forget_the_parents();
    stores_.erase(id);
  }

 private:
  // A forked child has inherited the map, but not the memory.
  void forget_the_parents() {
    if (owner_ != getpid()) stores_.clear();
    owner_ = getpid();
  }

  std::mutex mutex_;
  pid_t owner_ = getpid();
  std::map<std::string, std::shared_ptr<SharedStore>> stores_;
};

/// Never destroyed: other threads may still be inside at exit.
Meetings& meetings() {
  static auto* instance = new Meetings;
  return *instance;
}

}  // namespace

std::string create_meeting() {
  auto store = SharedStore::create();
  std::string id = store->address().serialize();
  meetings().add(id, std::move(store));
  return id;
}

std::shared_ptr<Store> open_meeting(const std::string& id) {
  const auto address = SharedStoreAddress::parse(id);
  if (auto store = meetings().find(id)) return store;
  return SharedStore::attach(address);
}

void close_meeting(const std::string& id) { meetings().remove(id); }

std::string name_of_meeting(const std::string& id) { return SharedStoreAddress::parse(id).name(); }

}  // namespace fvd::shm
