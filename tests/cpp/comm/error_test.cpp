#include "comm/error.h"

#include <gtest/gtest.h>

#include <cerrno>
#include <set>
#include <string>

namespace fvd {
namespace {

TEST(Error, CarriesItsKindAndText) {
  const Error error(Kind::kPeerLost, "rank 3 is gone");
  EXPECT_EQ(error.kind(), Kind::kPeerLost);
  EXPECT_STREQ(error.what(), "rank 3 is gone");
}

TEST(Error, EveryKindHasItsOwnName) {
  std::set<std::string> names;
  const int kinds = static_cast<int>(Kind::kLibrary) + 1;
  for (int kind = 0; kind < kinds; ++kind) {
    const std::string word = name(static_cast<Kind>(kind));
    EXPECT_FALSE(word.empty());
    EXPECT_EQ(word.find("unknown"), std::string::npos) << kind;
    names.insert(word);
  }
  EXPECT_EQ(names.size(), static_cast<std::size_t>(kinds));
  EXPECT_STREQ(name(static_cast<Kind>(200)), "unknown kind");
}

TEST(Error, TextStreamsItsParts) {
  EXPECT_EQ(text("rank ", 2, " of ", std::string("group"), ' ', 1.5), "rank 2 of group 1.5");
}

TEST(Error, ErrnoTextHasWordsAndNumber) {
  EXPECT_EQ(errno_text(EACCES), "Permission denied (errno 13)");
}

TEST(Check, ThrowsTheKindAndTheParts) {
  const int size = 3;
  EXPECT_NO_THROW(FVD_CHECK(size == 3, kTimeout, "never"));
  try {
    FVD_CHECK(size == 4, kMismatch, "size ", size, " is not ", 4);
    FAIL() << "nothing was thrown";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), Kind::kMismatch);
    EXPECT_STREQ(error.what(), "size 3 is not 4");
  }
}

TEST(Check, EvaluatesItsPartsOnlyWhenItThrows) {
  int evaluated = 0;
  const auto part = [&] { return ++evaluated; };
  FVD_CHECK(true, kSystem, part());
  EXPECT_EQ(evaluated, 0);
  EXPECT_THROW(FVD_CHECK(false, kSystem, part()), Error);
  EXPECT_EQ(evaluated, 1);
}

TEST(Check, IsOneStatement) {
  bool reached_else = false;
  if (false)
    FVD_CHECK(false, kSystem, "never");
  else
    reached_else = true;
  EXPECT_TRUE(reached_else);
}

int failing(int code) {
  errno = code;
  return -1;
}

TEST(SysCheck, SaysWhichErrnoItWas) {
  EXPECT_NO_THROW(FVD_SYS_CHECK(0, "never"));
  try {
    FVD_SYS_CHECK(failing(ENOENT), "open of \"", "x", "\"");
    FAIL() << "nothing was thrown";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), Kind::kSystem);
    EXPECT_STREQ(error.what(), "open of \"x\": No such file or directory (errno 2)");
  }
}

}  // namespace
}  // namespace fvd
