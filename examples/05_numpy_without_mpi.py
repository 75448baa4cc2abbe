"""NumPy arrays between processes, without MPI and without a process group of torch.distributed.

Estimates pi by throwing points, each rank its own; then each rank sends some of them to the next.

torchrun --nproc-per-node 2 examples/05_numpy_without_mpi.py
"""

import numpy as np
from torch.distributed.rendezvous import rendezvous

from fastvideo_dist import nccl

POINTS = 1_000_000


def unique_id(store, rank: int) -> nccl.UniqueId:
    """128 bytes from rank 0 to all; here by torchrun's store, but any way will do."""
    if rank == 0:
        store.set("numpy/id", bytes(nccl.get_unique_id()))
    return nccl.UniqueId.from_bytes(store.get("numpy/id"))


def main() -> None:
    store, rank, world = next(iter(rendezvous("env://")))
    with nccl.Communicator.init(world, rank, unique_id(store, rank)) as comm:
        points = np.random.default_rng(rank).random((POINTS, 2), np.float32)
        inside = np.array([np.count_nonzero((points**2).sum(axis=1) < 1)])
        comm.allreduce(inside, inside, nccl.SUM)  # in place
        pi = 4 * inside[0] / (POINTS * world)

        counts = np.empty(world, np.int64)
        comm.allgather(np.array([rank * rank]), counts)
        if counts.tolist() != [r * r for r in range(world)]:
            raise SystemExit(f"rank {rank}: gathered {counts}")

        passed_on = np.empty_like(points)
        with nccl.group():  # both at once, so that no rank waits for another
            comm.send(points, (rank + 1) % world)
            comm.recv(passed_on, (rank - 1) % world)
        expected = np.random.default_rng((rank - 1) % world).random((POINTS, 2), np.float32)
        if not np.array_equal(passed_on, expected) or abs(pi - np.pi) > 0.02:
            raise SystemExit(f"rank {rank}: pi is {pi}, or the points of another rank are wrong")
        if rank == 0:
            print(f"{world} ranks threw {POINTS * world} points: pi is about {pi:.4f}")


if __name__ == "__main__":
    main()
