#include "nccl/library.h"

#include <dlfcn.h>
#include <link.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <filesystem>
#include <optional>

#include "comm/error.h"

namespace fvd::nccl {
namespace {

std::string last_loader_error() {
  const char* words = dlerror();
  return words == nullptr ? "no reason given" : words;
}

/// The file behind a handle, as the loader knows it.
std::string path_of(void* handle) {
  link_map* map = nullptr;
  if (dlinfo(handle, RTLD_DI_LINKMAP, &map) != 0 || map == nullptr || map->l_name == nullptr)
    return {};
  return map->l_name;
}

void check_owner_and_mode(const std::string& part, const std::string& path) {
  struct stat facts {};
  FVD_CHECK(stat(part.c_str(), &facts) == 0, kInvalidArgument, path, ": ", part, ": ",
            errno_text(errno));
  FVD_CHECK(facts.st_uid == 0 || facts.st_uid == geteuid(), kInvalidArgument, path, ": ", part,
            " belongs to user ", facts.st_uid, ", neither root nor this user (", geteuid(), ")");
  const bool sticky = S_ISDIR(facts.st_mode) && (facts.st_mode & S_ISVTX) != 0;
  FVD_CHECK((facts.st_mode & S_IWOTH) == 0 || sticky, kInvalidArgument, path, ": ", part,
            " may be written by every user; chmod o-w it");
}

/// What was tried, for the error that ends a search.
class Tried {
 public:
  void add(const std::string& where, const std::string& reason) {
    words_ += text("\n  ", where, ": ", reason);
  }
  const std::string& words() const noexcept { return words_; }

 private:
  std::string words_;
};

/// The library behind `handle` if the search accepts it.
std::optional<Library> accepted(const LibrarySearch& search, void* handle, const std::string& path,
                                Tried& tried) {
  Library library(handle, path);
  try {
    search.accept(library);
    return library;
  } catch (const Error& error) {
    tried.add(path, error.what());
    return std::nullopt;
  }
}

std::optional<Library> open_file(const LibrarySearch& search, const std::string& path,
                                 Tried& tried) {
  std::string real;
  try {
    real = check_trusted(path);
  } catch (const Error& error) {
    tried.add(path, error.what());
    return std::nullopt;
  }
  void* handle = dlopen(real.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) {
    tried.add(real, last_loader_error());
    return std::nullopt;
  }
  return accepted(search, handle, real, tried);
}

std::optional<Library> already_loaded(const LibrarySearch& search, Tried& tried) {
  for (const std::string& soname : search.sonames) {
    if (void* handle = dlopen(soname.c_str(), RTLD_NOW | RTLD_NOLOAD)) {
      if (auto library = accepted(search, handle, path_of(handle), tried)) return library;
    } else {
      tried.add(soname, "not loaded in this process");
    }
  }
  return std::nullopt;
}

}  // namespace

void* Library::symbol(const char* name) const noexcept { return dlsym(handle_, name); }

std::string check_trusted(const std::string& path) {
  FVD_CHECK(!path.empty() && path.front() == '/', kInvalidArgument, "\"", path,
            "\" is no absolute path");
  char* resolved = realpath(path.c_str(), nullptr);
  FVD_CHECK(resolved != nullptr, kInvalidArgument, path, ": ", errno_text(errno));
  const std::string real = resolved;
  std::free(resolved);
  FVD_CHECK(std::filesystem::is_regular_file(real), kInvalidArgument, path, " is no regular file");
  // Links on the way need no look of their own: who may replace one can write to its folder, and
  // the name that is opened is the one without links.
  for (std::filesystem::path part = real;; part = part.parent_path()) {
    check_owner_and_mode(part.string(), path);
    if (part == part.root_path()) return real;
  }
}

std::vector<std::string> system_folders() {
  return {"/usr/lib/x86_64-linux-gnu",
          "/usr/lib/aarch64-linux-gnu",
          "/usr/lib64",
          "/usr/lib",
          "/usr/local/lib",
          "/usr/local/cuda/lib64"};
}

Library find_library(const LibrarySearch& search) {
  Tried tried;
  if (!search.given.empty()) {
    if (auto library = open_file(search, search.given, tried)) return *library;
  } else {
    if (auto library = already_loaded(search, tried)) return *library;
    for (const std::string& folder : search.folders) {
      for (const std::string& soname : search.sonames) {
        if (auto library = open_file(search, folder + "/" + soname, tried)) return *library;
      }
    }
  }
  throw Error(Kind::kUnsupported,
              text("fastvideo: no usable ", search.what, " library. Tried:", tried.words(),
                   "\nGive the absolute path of one by ", search.option, "."));
}

void* resolve(const Library& library, const char* symbol, bool required) {
  void* address = library.symbol(symbol);
  FVD_CHECK(address != nullptr || !required, kUnsupported, "it has no function ", symbol);
  if (address == nullptr) return nullptr;
  Dl_info found{};
  const bool known = dladdr(address, &found) != 0 && found.dli_fname != nullptr;
  std::error_code ignored;
  const bool same =
      known && (library.path() == found.dli_fname ||
                std::filesystem::equivalent(library.path(), found.dli_fname, ignored));
  FVD_CHECK(same, kUnsupported, symbol, " comes from ", known ? found.dli_fname : "nowhere",
            ": two copies are mixed in this process");
  return address;
}

}  // namespace fvd::nccl
