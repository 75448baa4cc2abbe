// Shared libraries that are found and loaded at run time, never linked.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

namespace fvd::nccl {

/// A loaded library. Never unloaded: its threads and exit handlers outlive whoever asked for it.
class Library {
 public:
  Library(void* handle, std::string path) : handle_(handle), path_(std::move(path)) {}

  /// Null if it has no such symbol.
  void* symbol(const char* name) const noexcept;

  /// The file it was loaded from.
  const std::string& path() const noexcept { return path_; }

 private:
  void* handle_;
  std::string path_;
};

/// Where one library may lie.
struct LibrarySearch {
  std::string what;                  // "NCCL", for messages
  std::string given;                 // by the user: this file or none; empty: look around
  std::string option;                // what the user sets to give one, for messages
  std::vector<std::string> sonames;  // newest first
  std::vector<std::string> folders;  // absolute, in this order

  /// Of the process's copy, then of each folder. The first library that it accepts is taken; it
  /// throws Error with the reason why not.
  std::function<void(const Library&)> accept;
};

/// Looks, in this order, for the file given (and if there is one, at nothing else); the copy this
/// process has loaded already, such as torch's; each folder. A file has to be trustworthy, see
/// check_trusted(); what is loaded already is taken as it is.
/// @throws Error(kUnsupported) listing everything that was tried, with the reason against it
Library find_library(const LibrarySearch& search);

/// @throws Error(kInvalidArgument) unless `path` is absolute, a regular file, and neither it nor
/// any folder above it may be changed by other users: all belong to root or to this user, and none
/// is writable for everybody (a folder with the sticky bit may be). Returns the path without links.
std::string check_trusted(const std::string& path);

/// Where Linux distributions and CUDA's installers put libraries.
std::vector<std::string> system_folders();

/// A function of `library`. @throws Error(kUnsupported) if it is missing and `required`.
/// A symbol that lies in another file than `library` (two copies, the names of one shadowing those
/// of the other) is refused likewise.
void* resolve(const Library& library, const char* symbol, bool required);

/// The same, required, into an entry of a table. @throws Error(kUnsupported)
template <typename Function>
void fill(const Library& library, const char* symbol, Function& function) {
  function = reinterpret_cast<Function>(resolve(library, symbol, true));
}

}  // namespace fvd::nccl
