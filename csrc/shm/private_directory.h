// The folder two processes of one user meet in: mode 0700, a secret only that user can read, one
// socket. It exists while a group is joined and is removed on every way out; what a killed process
// leaves behind is removed by those who joined with it, or else by the next who joins.
#pragma once

#include <array>
#include <string>

namespace fvd::shm {

using Secret = std::array<unsigned char, 16>;

/// Made and removed by the listening side.
class PrivateDirectory {
 public:
  /// Below `parent`, which has to exist. @throws Error(kSystem)
  explicit PrivateDirectory(const std::string& parent);
  ~PrivateDirectory();
  PrivateDirectory(const PrivateDirectory&) = delete;

  const std::string& path() const noexcept { return path_; }
  const Secret& secret() const noexcept { return secret_; }
  std::string socket_path() const { return path_ + "/socket"; }

 private:
  std::string path_;
  Secret secret_{};
};

/// Removes what processes of this user that were killed while joining have left below `parent`.
void sweep_private_directories(const std::string& parent);

/// Read by the connecting side, which got `path` from the store and trusts nothing about it: folder
/// and file must be ours and nobody else's to open, and no symbolic link. @throws Error(kSystem)
/// saying what is wrong
Secret read_secret(const std::string& path);

}  // namespace fvd::shm
