#include "shm/peer.h"

#include <unistd.h>

#include <cstring>

#include "comm/error.h"
#include "shm/serial.h"

namespace fvd::shm {
namespace {

// Changes whenever PeerInfo, Slot, Layout, the outbox or the meaning of a word in them changes.
constexpr char kPeerMagic[] = "fvd-shm-2";
constexpr std::size_t kMaxConnected = 4096;
constexpr std::size_t kMaxBootId = 64;

}  // namespace

std::string PeerInfo::serialize() const {
  std::string out(kPeerMagic, sizeof(kPeerMagic));
  put(out, boot_id);
  for (std::uint64_t value : {pid_namespace, uid, pid, start_time, domain[0], domain[1], nonce,
                              rank, size, slot, slots, pipeline_bytes, one_shot_bytes}) {
    put(out, value);
  }
  put(out, connected.size());
  for (const DomainId& id : connected) {
    put(out, id[0]);
    put(out, id[1]);
  }
  return out;
}

PeerInfo PeerInfo::parse(const std::string& bytes, int rank) {
  FVD_CHECK(bytes.size() >= sizeof(kPeerMagic) &&
                std::memcmp(bytes.data(), kPeerMagic, sizeof(kPeerMagic)) == 0,
            kMismatch, "rank ", rank, " runs another version of fastvideo_dist than this rank (",
            kPeerMagic, "); install the same version for all ranks");
  PeerInfo info;
  SerialReader reader{bytes, sizeof(kPeerMagic)};
  bool ok = reader.get(info.boot_id, kMaxBootId);
  for (std::uint64_t* value :
       {&info.pid_namespace, &info.uid, &info.pid, &info.start_time, &info.domain[0],
        &info.domain[1], &info.nonce, &info.rank, &info.size, &info.slot, &info.slots,
        &info.pipeline_bytes, &info.one_shot_bytes}) {
    ok = ok && reader.get(*value);
  }
  std::uint64_t connected = 0;
  ok = ok && reader.get(connected) && connected <= kMaxConnected;
  for (std::uint64_t i = 0; ok && i < connected; ++i) {
    DomainId id{};
    ok = reader.get(id[0]) && reader.get(id[1]);
    info.connected.push_back(id);
  }
  // Sizes that could not be of a real domain would let an offset wrap around.
  ok = ok && reader.at == bytes.size() && info.layout().valid() && info.slot < info.slots &&
       info.one_shot_bytes <= Layout::kOneShotBytes;
  FVD_CHECK(ok, kMismatch, "what rank ", rank,
            " put into the store to join the group is malformed; does something else write there?");
  return info;
}

Peer::~Peer() {
  if (pidfd != -1) close(pidfd);
}

}  // namespace fvd::shm
