// Which libraries are taken, which are refused, and what the error tells of the search.
#include "nccl/library.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <cstdlib>
#include <filesystem>

#include "nccl/cuda_api.h"
#include "nccl/nccl_api.h"
#include "support/ending.h"
#include "support/file_store.h"

namespace fvd::test {
namespace {

using nccl::check_trusted;

NcclOptions given(const std::string& library, const std::string& wheels = {}) {
  NcclOptions options;
  options.library = options.cuda_library = library;
  options.wheels = wheels;
  return options;
}

class LibraryTest : public ::testing::Test {
 protected:
  /// A copy of the fake, which is both libraries.
  std::string copy(const std::string& name) {
    const auto file = directory_.path() / name;
    std::filesystem::create_directories(file.parent_path());
    std::filesystem::copy_file(FVD_FAKE_LIBRARY, file);
    return file.string();
  }
  Ending trust(const std::string& path) {
    return ending_of([&] { return check_trusted(path); });
  }
  Ending load(const NcclOptions& options) {
    return ending_of([&] { return nccl::load_nccl(options).path; });
  }

  TemporaryDirectory directory_;
};

TEST_F(LibraryTest, AnAbsoluteFileOfOursIsTrusted) {
  const std::string file = copy("libnccl.so.2");
  EXPECT_EQ(trust(file).words, std::filesystem::canonical(file).string());
}

TEST_F(LibraryTest, OtherPathsAreRefused) {
  EXPECT_TRUE(trust("libnccl.so.2").says("no absolute path"));
  EXPECT_TRUE(trust("").says("no absolute path"));
  EXPECT_TRUE(trust("/nonexistent/libnccl.so.2").says("No such file"));
  EXPECT_TRUE(trust(directory_.path().string()).says("no regular file"));
}

TEST_F(LibraryTest, WhatEverybodyMayWriteIsRefused) {
  const std::string file = copy("libnccl.so.2");
  chmod(file.c_str(), 0666);
  EXPECT_TRUE(trust(file).threw(Kind::kInvalidArgument)) << trust(file);
  EXPECT_TRUE(trust(file).says("may be written by every user"));
  EXPECT_TRUE(load(given(file)).says("may be written by every user")) << load(given(file));
}

TEST_F(LibraryTest, AFolderAboveThatEverybodyMayWriteIsRefused) {
  const std::string file = copy("open/below/libnccl.so.2");
  const std::string folder = (directory_.path() / "open").string();
  chmod(folder.c_str(), 0777);
  EXPECT_TRUE(trust(file).says(folder)) << trust(file);
  chmod(folder.c_str(), 01777);  // as /tmp: nobody else can put another file in its place
  EXPECT_TRUE(trust(file).returned) << trust(file);
}

TEST_F(LibraryTest, ALinkIsJudgedByWhereItLeads) {
  const std::string file = copy("open/libnccl.so.2");
  chmod((directory_.path() / "open").c_str(), 0777);
  const auto link = directory_.path() / "link.so";
  std::filesystem::create_symlink(file, link);
  EXPECT_TRUE(trust(link.string()).says("may be written by every user"));
}

TEST_F(LibraryTest, TheFileGivenIsTaken) {
  const std::string file = copy("mine.so");
  const auto api = nccl::load_nccl(given(file));
  EXPECT_EQ(api.path, std::filesystem::canonical(file).string());
  EXPECT_EQ(api.version, 22907);
  ASSERT_NE(api.all_reduce, nullptr);
  const auto cuda = nccl::load_cuda(given(file));
  EXPECT_EQ(cuda.version, 13000);
}

TEST_F(LibraryTest, NothingElseIsTriedInPlaceOfTheFileGiven) {
  copy("wheels/nvidia/nccl/lib/libnccl.so.2");
  const auto ending =
      load(given("/nonexistent/libnccl.so.2", (directory_.path() / "wheels").string()));
  EXPECT_TRUE(ending.threw(Kind::kUnsupported)) << ending;
  EXPECT_TRUE(ending.says("/nonexistent/libnccl.so.2: ")) << ending;
  EXPECT_TRUE(ending.says("FASTVIDEO_DIST_NCCL_LIBRARY")) << ending;
  EXPECT_FALSE(ending.says("wheels")) << ending;
}

TEST_F(LibraryTest, AWheelIsFound) {
  const std::string file = copy("wheels/nvidia/nccl/lib/libnccl.so.2");
  const auto ending = load(given({}, (directory_.path() / "wheels").string()));
  EXPECT_EQ(ending.words, std::filesystem::canonical(file).string());
}

TEST_F(LibraryTest, AVersionThatIsTooOldOrTooNewIsRefused) {
  for (const char* version : {"21705", "30000"}) {
    // A library of its own: what is loaded already keeps its version.
    const std::string file = copy(std::string(version) + ".so");
    setenv("FAKE_NCCL_VERSION", version, 1);
    const auto ending = load(given(file));
    unsetenv("FAKE_NCCL_VERSION");
    EXPECT_TRUE(ending.threw(Kind::kUnsupported)) << ending;
    EXPECT_TRUE(ending.says(std::string(version) == "21705" ? "it is NCCL 2.17.5; needed is 2.18.1"
                                                            : "it is NCCL 3.0.0"))
        << ending;
  }
}

TEST_F(LibraryTest, TheErrorListsEverythingThatWasTried) {
  nccl::LibrarySearch search;
  search.what = "nonsense";
  search.option = "NONSENSE_LIBRARY";
  search.sonames = {"libnonsense.so.3", "libnonsense.so.2"};
  search.folders = {"/nonexistent", directory_.path().string()};
  search.accept = [](const nccl::Library&) {};
  std::ofstream(directory_.path() / "libnonsense.so.2") << "no library";
  const auto ending = ending_of([&] { return nccl::find_library(search).path(); });
  EXPECT_TRUE(ending.threw(Kind::kUnsupported));
  for (const char* part :
       {"libnonsense.so.3: not loaded in this process", "libnonsense.so.2: not loaded",
        "/nonexistent/libnonsense.so.3: ", "/libnonsense.so.2: ", "NONSENSE_LIBRARY"})
    EXPECT_TRUE(ending.says(part)) << part << "\n" << ending;
}

TEST_F(LibraryTest, ALibraryWithoutTheFunctionsIsRefused) {
  nccl::LibrarySearch search;
  search.what = "C";
  search.sonames = {"libc.so.6"};  // loaded already
  search.accept = [](const nccl::Library& library) { nccl::nccl_api_of(library); };
  const auto ending = ending_of([&] { return nccl::find_library(search).path(); });
  EXPECT_TRUE(ending.says("it has no function ncclGetVersion")) << ending;
}

}  // namespace
}  // namespace fvd::test
