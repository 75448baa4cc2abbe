// A folder of a test's own, with files laid out in it.
#pragma once

#include <filesystem>
#include <fstream>
#include <string>

#include "support/file_store.h"

namespace fvd::test {

class ScratchFolder {
 public:
  std::string path() const { return directory_.path().string(); }

  /// The path of a new subfolder.
  std::string folder(const std::string& name) const {
    std::filesystem::create_directories(directory_.path() / name);
    return (directory_.path() / name).string();
  }

  /// Writes `text` to `name`, below folders made for it.
  void write(const std::string& name, const std::string& text) const {
    const std::filesystem::path file = directory_.path() / name;
    std::filesystem::create_directories(file.parent_path());
    std::ofstream(file) << text;
  }

 private:
  TemporaryDirectory directory_;
};

}  // namespace fvd::test
