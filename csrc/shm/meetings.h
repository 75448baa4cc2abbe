// Places where ranks meet that have nothing in common but an id, of this process and of others.
#pragma once

#include <memory>
#include <string>

#include "comm/store.h"

namespace fvd::shm {

/// A new place (shared_store.h), which this process keeps until close_meeting, or its end: its
/// memory must stay until all ranks have attached. Returns the id, 128 bytes.
/// @throws Error(kSystem)
std::string create_meeting();

/// The place of an id. @throws Error: see SharedStoreAddress::parse and SharedStore::attach
std::shared_ptr<Store> open_meeting(const std::string& id);

/// All ranks have come; whoever still uses the place holds it. Of no effect in other processes than
/// the one that made it.
void close_meeting(const std::string& id);

/// For messages. @throws Error(kInvalidArgument)
std::string name_of_meeting(const std::string& id);

}  // namespace fvd::shm
