"""One writer, many readers, in processes of their own: values, waiting, deaths, what is left."""

from __future__ import annotations

import os
import pickle
import signal
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

import harness
from fastvideo_dist.message_queue import Handle, MessageQueue
from fresh import fresh_ranks
from python.queue_objects import objects, raised, same
from rank_process import Control

SOON_S = 0.05
NOTICED_S = 5.0  # 0.1 are promised


def open_end(control: Control, **options: Any) -> MessageQueue:
    """Rank 0 writes; ranks 1 and up read, by a handle out of the store."""
    store = control.place.connect(control.prefix)
    if control.rank == 0:
        queue = MessageQueue(control.world_size - 1, control.world_size - 1, **options)
        store.set("handle", pickle.dumps(queue.export_handle()))
        open_end.keep = queue  # type: ignore[attr-defined]
        return queue
    return MessageQueue.create_from_handle(pickle.loads(store.get("handle")), control.rank - 1)


# ---- values ------------------------------------------------------------------------------------


def exchange_all(control: Control, **options: Any) -> str:
    queue = open_end(control, **options)
    queue.wait_until_ready(30)
    if control.rank == 0:
        for obj in objects() * 3:
            queue.enqueue(obj, 30)
        control.reached("sent")
        control.wait_for("all read")
    else:
        for number, obj in enumerate(objects() * 3):
            got = queue.dequeue(30)
            assert same(obj, got), f"object {number}: {got!r}"
        control.reached("read")
    queue.close()
    return "done"


@pytest.mark.parametrize(
    "options", [{}, {"max_chunk_bytes": 4096, "max_chunks": 3}, {"max_chunk_bytes": 1 << 20}]
)
@pytest.mark.parametrize("readers", [1, 3])
def test_every_reader_gets_every_object(readers: int, options: dict[str, int]) -> None:
    with fresh_ranks(exchange_all, 1 + readers, **options) as ranks:
        ranks.wait_until("read", list(range(1, 1 + readers)))
        ranks.tell(0, "all read")
        for outcome in ranks.outcomes():
            assert outcome.report is not None, outcome
            assert outcome.report.value == "done", outcome


def test_in_one_process() -> None:
    with MessageQueue(2, 2, [5, 7], name="here") as writer:
        handle = pickle.loads(pickle.dumps(writer.export_handle()))
        readers = [MessageQueue.create_from_handle(handle, rank) for rank in (5, 7)]
        assert writer.is_writer
        assert not readers[0].is_writer
        assert writer.broadcast_object({"a": 1}) == {"a": 1}
        assert [reader.broadcast_object() for reader in readers] == [{"a": 1}] * 2
        tensor = torch.zeros(1000)
        writer.enqueue(tensor)
        got = [reader.dequeue() for reader in readers]
        got[0] += 1
        assert got[1].sum() == tensor.sum() == 0
        for reader in readers:
            reader.close()


def test_chunks_in_place() -> None:
    with MessageQueue(1, 1, max_chunk_bytes=256, max_chunks=2, name="raw") as writer:
        reader = MessageQueue.create_from_handle(writer.export_handle(), 0)
        for round_number in range(5):
            with writer.acquire_write(1) as chunk:
                assert (len(chunk), chunk.readonly) == (256, False)
                chunk[:] = bytes([round_number]) * 256
                assert "still open" in raised(ValueError, lambda: writer.enqueue(1))
            with reader.acquire_read(1) as chunk:
                assert chunk.readonly
                assert bytes(chunk) == bytes([round_number]) * 256
            raised(ValueError, lambda chunk=chunk: chunk[0])  # type: ignore[misc]
        with pytest.raises(KeyError), writer.acquire_write():
            raise KeyError
        writer.enqueue("an object")
        assert "take it by dequeue" in raised(
            ValueError, lambda: reader.acquire_read(1).__enter__()
        )
        assert reader.dequeue(1) == "an object"
        with writer.acquire_write():
            pass
        assert "take it by acquire_read" in raised(ValueError, lambda: reader.dequeue(1))


def test_a_reader_closed_in_its_block_keeps_the_chunk() -> None:
    with MessageQueue(1, 1, max_chunk_bytes=256, max_chunks=1, name="held") as writer:
        reader = MessageQueue.create_from_handle(writer.export_handle(), 0)
        with writer.acquire_write(1) as chunk:
            chunk[:] = bytes([7]) * 256
        with reader.acquire_read(1) as seen:
            reader.close()
            raised(TimeoutError, lambda: writer.enqueue("over it", SOON_S))
            assert bytes(seen) == bytes([7]) * 256
        assert "every reader has closed" in raised(
            dist.DistBackendError, lambda: writer.enqueue("after it")
        )
        assert "after close" in raised(
            dist.DistBackendError, lambda: reader.acquire_read().__enter__()
        )


# ---- waiting -----------------------------------------------------------------------------------


def test_back_pressure_and_timeouts() -> None:
    with MessageQueue(1, 1, max_chunks=3, name="small") as writer:
        reader = MessageQueue.create_from_handle(writer.export_handle(), 0)
        empty = raised(TimeoutError, lambda: reader.dequeue(SOON_S))
        assert 'dequeue on queue "small", reader 0 of 1' in empty
        assert f"nothing came from the writer (pid {os.getpid()})" in empty
        for number in range(3):
            writer.enqueue(number)
        full = raised(TimeoutError, lambda: writer.enqueue("no room", SOON_S))
        assert "all 3 chunks are full" in full
        assert f"reader 0 (pid {os.getpid()})" in full
        assert "took 0 of 3 chunks" in full
        raised(TimeoutError, lambda: writer.enqueue("no room", 0))
        assert reader.dequeue() == 0
        writer.enqueue(3)
        assert [reader.dequeue() for _ in range(3)] == [1, 2, 3]


def test_an_object_larger_than_the_queue_that_nobody_takes() -> None:
    with MessageQueue(1, 1, max_chunk_bytes=4096, max_chunks=3) as writer:
        reader = MessageQueue.create_from_handle(writer.export_handle(), 0)
        large = np.arange(100_000)
        raised(TimeoutError, lambda: writer.enqueue(large, SOON_S))
        raised(TimeoutError, lambda: reader.dequeue(SOON_S))
        got: list[Any] = []
        thread = threading.Thread(target=lambda: got.append(reader.dequeue(30)))
        thread.start()
        writer.enqueue(large + 1, 30)
        thread.join()
        assert np.array_equal(got[0], large + 1)


def test_readers_that_do_not_come() -> None:
    with MessageQueue(2, 2, name="lonely") as writer:
        MessageQueue.create_from_handle(writer.export_handle(), 0)
        words = raised(TimeoutError, lambda: writer.wait_until_ready(SOON_S))
        assert "reader 1 has not attached" in words


def wait_until_asleep(thread: threading.Thread) -> None:
    """Until it sleeps in the kernel, at two looks: between them it may have the interpreter."""
    stat = Path(f"/proc/self/task/{thread.native_id}/stat")
    asleep, deadline = 0, time.monotonic() + 30
    while asleep < 2:
        assert time.monotonic() < deadline
        asleep = asleep + 1 if stat.read_text().rpartition(")")[2].split()[0] == "S" else 0
        time.sleep(0.005)


def test_closing_wakes_a_waiting_thread() -> None:
    writer = MessageQueue(1, 1)
    reader = MessageQueue.create_from_handle(writer.export_handle(), 0)
    words: list[str] = []
    thread = threading.Thread(
        target=lambda: words.append(raised(dist.DistBackendError, reader.dequeue))
    )
    thread.start()
    wait_until_asleep(thread)
    reader.close()
    thread.join(10)
    assert "it was closed here" in words[0]
    assert "every reader has closed" in raised(dist.DistBackendError, lambda: writer.enqueue(1))
    writer.shutdown()
    writer.close()
    assert "after close" in raised(dist.DistBackendError, lambda: writer.enqueue(1))


def test_a_closed_writer_is_drained() -> None:
    writer = MessageQueue(1, 1)
    reader = MessageQueue.create_from_handle(writer.export_handle(), 0)
    writer.enqueue("last")
    writer.close()
    assert reader.dequeue() == "last"
    assert "the writer closed it" in raised(dist.DistBackendError, reader.dequeue)


# ---- wrong use ---------------------------------------------------------------------------------


def test_wrong_arguments() -> None:
    assert "2 of 3 readers" in raised(ValueError, lambda: MessageQueue(3, 2))
    assert "different ranks" in raised(ValueError, lambda: MessageQueue(2, 2, [1, 1]))
    for options in [{"max_chunks": 0}, {"max_chunk_bytes": 1}, {"max_chunks": -1}]:
        assert "chunks of" in raised(ValueError, lambda o=options: MessageQueue(1, 1, **o))  # type: ignore[misc]
    assert "0 readers" in raised(ValueError, lambda: MessageQueue(0, 0))
    with MessageQueue(1, 1, [4], name="q") as writer:
        handle = writer.export_handle()
        assert "rank 0 is no reader" in raised(
            ValueError, lambda: MessageQueue.create_from_handle(handle, 0)
        )
        reader = MessageQueue.create_from_handle(handle, 4)
        assert f"reader 0 is process {os.getpid()}" in raised(
            ValueError, lambda: MessageQueue.create_from_handle(handle, 4)
        )
        assert "dequeue is for a reader" in raised(RuntimeError, writer.dequeue)
        assert "enqueue is for the writer" in raised(RuntimeError, lambda: reader.enqueue(1))
        raised(RuntimeError, reader.export_handle)
        raised(ValueError, lambda: reader.dequeue(float("nan")))
        raised((AttributeError, pickle.PicklingError), lambda: writer.enqueue(lambda: 0))  # type: ignore[arg-type]
        writer.enqueue("fine")
        assert reader.dequeue() == "fine"


def test_handles_of_queues_that_are_gone() -> None:
    writer = MessageQueue(1, 1, name="gone")
    handle = writer.export_handle()
    assert isinstance(handle, Handle)
    assert handle.address is not None
    assert handle.address.hex() not in repr(handle)
    writer.close()
    words = raised(dist.DistBackendError, lambda: MessageQueue.create_from_handle(handle, 0))
    assert "closed it" in words
    malformed = Handle(handle.address[:-1], (0,), "gone")
    raised(ValueError, lambda: MessageQueue.create_from_handle(malformed, 0))


# ---- deaths ------------------------------------------------------------------------------------


def wait_in_queue(control: Control) -> None:
    """Rank 0 fills the queue and waits for room; reader 1 takes nothing; others wait for more."""
    queue = open_end(control, max_chunks=2, name="mortal")
    queue.wait_until_ready(30)
    if control.rank == 0:
        queue.enqueue("one")
        queue.enqueue("two")
        control.reached("waiting")
        queue.enqueue("three")
    elif control.rank == 1:
        control.reached("waiting")
        control.wait_for("never")
    else:
        queue.dequeue()
        queue.dequeue()
        control.reached("waiting")
        queue.dequeue()


def test_a_killed_reader_raises_in_all_others() -> None:
    with fresh_ranks(wait_in_queue, 4) as ranks:
        ranks.wait_until("waiting")
        for rank in (0, 2, 3):
            ranks.wait_until_asleep(rank)
        killed = ranks.kill(1)
        for outcome in ranks.outcomes([0, 2, 3]):
            assert outcome.raised, outcome
            assert outcome.report is not None
            assert "DistBackendError" in outcome.report.types, outcome
            assert f"reader 0 (pid {ranks.pid(1)})" in outcome.report.text, outcome
            assert outcome.report.at - killed < NOTICED_S, outcome


def test_a_killed_writer_raises_in_its_readers() -> None:
    with fresh_ranks(wait_in_queue, 4) as ranks:
        ranks.wait_until("waiting")
        killed = ranks.kill(0)
        for outcome in ranks.outcomes([2, 3]):
            assert outcome.report is not None
            assert "DistBackendError" in outcome.report.types, outcome
            assert f"writer (pid {ranks.pid(0)})" in outcome.report.text, outcome
            assert outcome.report.at - killed < NOTICED_S, outcome


def test_nothing_is_left_when_all_are_killed() -> None:
    before = set(os.listdir("/dev/shm"))
    with fresh_ranks(wait_in_queue, 3) as ranks:
        ranks.wait_until("waiting")
        for rank in range(3):
            ranks.kill(rank)
        ranks.outcomes()
        assert set(os.listdir("/dev/shm")) <= before
        assert not [n for n in os.listdir(harness.session.directory) if n.startswith("fastvideo")]


def wait_for_ctrl_c(control: Control) -> str:
    queue = open_end(control)
    control.reached("waiting")
    if control.rank == 0:
        control.wait_for("go on")
        queue.enqueue("still usable")
        control.wait_for("end")
        return ""
    try:
        queue.dequeue()
    except KeyboardInterrupt:
        control.reached("interrupted")
    return str(queue.dequeue(30))


def test_ctrl_c_ends_a_wait_and_leaves_the_queue_usable() -> None:
    with fresh_ranks(wait_for_ctrl_c, 2) as ranks:
        ranks.wait_until("waiting")
        ranks.wait_until_asleep(1)
        ranks.signal(1, signal.SIGINT)
        ranks.wait_until("interrupted", [1])
        ranks.tell(0, "go on")
        (outcome,) = ranks.outcomes([1])
        assert outcome.report is not None
        assert outcome.report.value == "still usable", outcome
        ranks.tell(0, "end")


def test_idle_readers_do_not_burn_cores() -> None:
    with MessageQueue(1, 1) as writer:
        reader = MessageQueue.create_from_handle(writer.export_handle(), 0)
        before = time.thread_time()
        raised(TimeoutError, lambda: reader.dequeue(1.0))
        assert time.thread_time() - before < 0.1
