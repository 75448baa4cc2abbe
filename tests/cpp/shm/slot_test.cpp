// The layout of a segment: nothing overlaps, everything is aligned, the last byte is the last byte.
#include "shm/slot.h"

#include <gtest/gtest.h>

namespace fvd::shm {
namespace {

TEST(Layout, AreasFollowEachOtherWithoutGapOrOverlap) {
  for (const std::size_t slots : {1U, 3U, 4U, 4096U}) {
    const Layout layout{slots, 128 << 10};
    EXPECT_GE(layout.slot_offset(0), Layout::kHeaderBytes);
    EXPECT_GE(layout.staging_offset(0), layout.slot_offset(slots));
    EXPECT_LT(layout.staging_offset(0) - layout.slot_offset(slots), kPageBytes);
    for (const std::size_t slot : {std::size_t{0}, slots - 1}) {
      EXPECT_EQ(layout.one_shot_offset(slot, 0), layout.staging_offset(slot));
      EXPECT_EQ(layout.one_shot_offset(slot, 1),
                layout.one_shot_offset(slot, 0) + Layout::kOneShotBytes);
      EXPECT_EQ(layout.pipeline_offset(slot),
                layout.one_shot_offset(slot, 1) + Layout::kOneShotBytes);
      EXPECT_EQ(layout.outbox_offset(slot), layout.pipeline_offset(slot) + layout.pipeline_bytes);
      EXPECT_EQ(layout.outbox_offset(slot) + Layout::kOutboxBytes, layout.staging_offset(slot + 1));
    }
    EXPECT_EQ(layout.data_bytes(), layout.staging_offset(slots));
    EXPECT_GE(layout.control_bytes(), slots * sizeof(Bells));
  }
}

TEST(Layout, AreasStartOnPagesSoThatTheyCanBeReservedAlone) {
  const Layout layout{5, 132 << 10};
  for (std::size_t slot = 0; slot < 5; ++slot) {
    EXPECT_EQ(layout.one_shot_offset(slot, 0) % kPageBytes, 0U);
    EXPECT_EQ(layout.pipeline_offset(slot) % kPageBytes, 0U);
    EXPECT_EQ(layout.outbox_offset(slot) % kPageBytes, 0U);
  }
  EXPECT_EQ(layout.data_bytes() % kPageBytes, 0U);
  EXPECT_EQ(layout.control_bytes() % kPageBytes, 0U);
}

TEST(Layout, WordsOfDifferentWritersShareNoLine) {
  EXPECT_EQ(sizeof(Slot) % kLineBytes, 0U);
  EXPECT_EQ(offsetof(Slot, progress) % kLineBytes, 0U);
  EXPECT_EQ(offsetof(Slot, state) % kLineBytes, 0U);
  EXPECT_EQ(offsetof(Outbox, rings) % kPageBytes, 0U);
  EXPECT_EQ(offsetof(Outbox, lanes) % kPageBytes, 0U);
  EXPECT_EQ(sizeof(Bell), 64U);
}

TEST(Layout, EveryRankHasItsShareOfAnOutbox) {
  for (std::size_t ranks = 1; ranks <= kMaxRanks; ++ranks) {
    EXPECT_LE(ranks * Outbox::ring_bytes(ranks), Outbox::kRingsBytes);
    EXPECT_LE(ranks * Outbox::lane_bytes(ranks), Outbox::kLanesBytes);
    EXPECT_EQ(Outbox::ring_bytes(ranks) % kPageBytes, 0U);
    EXPECT_EQ(Outbox::lane_bytes(ranks) % Outbox::part_bytes(ranks), 0U);
    EXPECT_EQ(Outbox::part_bytes(ranks) % kRecordAlign, 0U);
    EXPECT_GE(Outbox::whole_bytes(ranks), 512U);
  }
}

TEST(Layout, ALineHoldsAllThatASmallCollectiveNeeds) {
  EXPECT_LE(offsetof(Line, payload) + kInlineBytes, 64U);
  EXPECT_GE(Layout::kOneShotBytes, 2 * 8 * kMaxRanks) << "the lengths of an uneven all_to_all";
}

}  // namespace
}  // namespace fvd::shm
