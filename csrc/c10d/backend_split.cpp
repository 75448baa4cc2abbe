// Groups made of a group: torch.distributed.split_group.
#include <algorithm>
#include <string>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <utility>

#include "c10d/backend.h"
#include "c10d/translate_errors.h"

namespace fvd::c10d_ {

c10::intrusive_ptr<FastVideoOptions> FastVideoBackend::options_of_split(
    const std::vector<int>& ranks, const c10::intrusive_ptr<::c10d::Backend::Options>& asked) {
  const auto where = site("split_group");
  const auto* ours = dynamic_cast<const FastVideoOptions*>(asked.get());
  TORCH_CHECK_TYPE(asked == nullptr || ours != nullptr, where.prefix(),
                   "the options are those of another backend; give fastvideo_dist.Options or None");
  auto options = c10::make_intrusive<FastVideoOptions>(ours == nullptr ? *options_ : *ours);
  // torch hands over a copy of this group's options, in which only name and timeout are new.
  if (options->group_desc == options_->group_desc) options->group_desc += ":split";
  options->global_ranks_in_group.clear();
  const auto& global = options_->global_ranks_in_group;
  for (const int rank : ranks) {
    TORCH_CHECK_VALUE(rank >= 0 && rank < size_, where.prefix(), "there is no rank ", rank,
                      " to split off; the group has ranks 0 to ", size_ - 1);
    TORCH_CHECK_VALUE(std::count(ranks.begin(), ranks.end(), rank) == 1, where.prefix(), "rank ",
                      rank, " is named more than once");
    options->global_ranks_in_group.push_back(
        global.empty() ? static_cast<std::uint64_t>(rank) : global[static_cast<std::size_t>(rank)]);
  }
  return options;
}

c10::intrusive_ptr<::c10d::Backend> FastVideoBackend::split(
    const c10::intrusive_ptr<::c10d::Store>& store, const std::vector<int>& ranks,
    const c10::intrusive_ptr<::c10d::Backend::Options>& options) {
  const auto own = options_of_split(ranks, options);
  const auto me = std::find(ranks.begin(), ranks.end(), rank_);
  if (me == ranks.end()) return nullptr;
  const std::lock_guard lock(split_mutex_);
  if (const auto last = std::exchange(last_split_, std::nullopt);
      last.has_value() && last->name == own->group_name) {
    if (auto same = last->backend.lock()) return same;
  }
  c10::intrusive_ptr<::c10d::Backend> made;
  runner_->host().run_unlocked([&] {
    // Groups of other ranks may have this name too. And torch gives a name again once its group was
    // destroyed, while what that one said is still there: all of its ranks come equally often, so
    // they count alike.
    std::string place = "split";
    for (const int rank : ranks) place += text("_", rank);
    const auto turn = store->add(text(place, "/", rank_), 1);
    made = c10::make_intrusive<FastVideoBackend>(
        c10::make_intrusive<::c10d::PrefixStore>(text(place, "/", turn, "/"), store),
        static_cast<int>(me - ranks.begin()), static_cast<int>(ranks.size()), own, factory_,
        runner_->host());
  });
  last_split_ = Split{own->group_name, c10::weak_intrusive_ptr<::c10d::Backend>(made)};
  return made;
}

}  // namespace fvd::c10d_
