#include "shm/private_directory.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>

#include "comm/error.h"
#include "shm/process.h"

namespace fvd::shm {
namespace {

constexpr char kPrefix[] = "fastvideo_dist-";

/// Closes a descriptor at the end of a block.
struct Descriptor {
  int fd;
  ~Descriptor() {
    if (fd != -1) close(fd);
  }
};

/// Only a real folder of ours is touched, and only the two names we put into one.
void remove_directory(const std::string& path) noexcept {
  const Descriptor folder{open(path.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC)};
  struct stat status {};
  if (folder.fd == -1 || fstat(folder.fd, &status) == -1 || status.st_uid != geteuid()) return;
  unlinkat(folder.fd, "socket", 0);
  unlinkat(folder.fd, "secret", 0);
  rmdir(path.c_str());
}

/// What begins the names of this user's folders in this PID namespace, where alone a pid says who
/// made one.
std::string our_prefix() { return text(kPrefix, geteuid(), "-", pid_namespace(), "-"); }

}  // namespace

// Names carry pid and start time.
void sweep_private_directories(const std::string& parent) {
  DIR* folder = opendir(parent.c_str());
  if (folder == nullptr) return;
  const std::string ours = our_prefix();
  while (const dirent* entry = readdir(folder)) {
    const std::string name = entry->d_name;
    if (name.compare(0, ours.size(), ours) != 0) continue;
    long pid = 0;
    unsigned long long started = 0;
    if (std::sscanf(name.c_str() + ours.size(), "%ld-%llu-", &pid, &started) != 2) continue;
    if (pid > 0 && has_ended(static_cast<pid_t>(pid), started))
      remove_directory(parent + "/" + name);
  }
  closedir(folder);
}

PrivateDirectory::PrivateDirectory(const std::string& parent) {
  sweep_private_directories(parent);
  std::string pattern =
      text(parent, "/", our_prefix(), getpid(), "-", start_time(getpid()), "-XXXXXX");
  FVD_CHECK(pattern.size() + sizeof("/socket") < sizeof(sockaddr_un::sun_path), kSystem,
            "the path ", pattern,
            " is too long for a Unix socket; set "
            "FASTVIDEO_DIST_SOCKET_DIRECTORY to a shorter one");
  FVD_SYS_CHECK(mkdtemp(pattern.data()) == nullptr ? -1 : 0, "making the directory ", pattern,
                " to connect the ranks; FASTVIDEO_DIST_SOCKET_DIRECTORY names another place");
  path_ = pattern;
  try {
    const auto random = getrandom(secret_.data(), secret_.size(), 0);
    FVD_SYS_CHECK(random == static_cast<ssize_t>(secret_.size()) ? 0 : -1, "getrandom");
    const Descriptor file{
        open((path_ + "/secret").c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600)};
    FVD_SYS_CHECK(file.fd, "making the secret in ", path_);
    const auto written = write(file.fd, secret_.data(), secret_.size());
    FVD_SYS_CHECK(written == static_cast<ssize_t>(secret_.size()) ? 0 : -1,
                  "writing the secret in ", path_);
  } catch (...) {
    remove_directory(path_);
    throw;
  }
}

PrivateDirectory::~PrivateDirectory() { remove_directory(path_); }

Secret read_secret(const std::string& path) {
  const Descriptor folder{open(path.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC)};
  FVD_SYS_CHECK(
      folder.fd, "opening ", path,
      ", where a rank of this host waits to be connected. Ranks in different containers need a "
      "common directory: FASTVIDEO_DIST_SOCKET_DIRECTORY");
  struct stat status {};
  FVD_SYS_CHECK(fstat(folder.fd, &status), "examining ", path);
  FVD_CHECK(status.st_uid == geteuid() && (status.st_mode & 077) == 0, kSystem, path,
            " belongs to user ", status.st_uid, " with mode ", std::oct, status.st_mode & 0777,
            std::dec, "; it must be this user's (", geteuid(), ") alone. Refused");
  const Descriptor file{openat(folder.fd, "secret", O_RDONLY | O_NOFOLLOW | O_CLOEXEC)};
  FVD_SYS_CHECK(file.fd, "opening the secret in ", path);
  FVD_SYS_CHECK(fstat(file.fd, &status), "examining the secret in ", path);
  FVD_CHECK(status.st_uid == geteuid() && (status.st_mode & 077) == 0, kSystem, "the secret in ",
            path, " is not this user's alone. Refused");
  Secret secret{};
  const auto got = read(file.fd, secret.data(), secret.size());
  FVD_CHECK(got == static_cast<ssize_t>(secret.size()), kSystem, "the secret in ", path,
            " is too short");
  return secret;
}

}  // namespace fvd::shm
