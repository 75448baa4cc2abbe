"""Calls in CUDA graphs: captured, replayed, interleaved, and longer alive than their group."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

from fastvideo_dist import ops
from fastvideo_dist.device_communicators.pynccl import PyNcclCommunicator
from fastvideo_dist.graph_capture import connect_gpus
from fastvideo_dist.group_coordinator import GroupCoordinator
from gpu.one_gpu import WORLD, join, run
from rank_process import Control

pytestmark = pytest.mark.timeout(400)


def two_graphs(control: Control) -> None:
    device = join(control)
    tp = GroupCoordinator([[0, 1]], 0, "fastvideo", True, group_name="tp", device=device)
    x = torch.zeros(4, 4, device=device)
    graphs = [torch.cuda.CUDAGraph() for _ in range(2)]
    with tp.graph_capture() as context:
        with torch.cuda.graph(graphs[0], stream=context.stream):
            total = tp.all_reduce(x)
        with torch.cuda.graph(graphs[1], stream=context.stream):
            joined = tp.all_gather(x * 2, 1)
    for turn, order in enumerate([(0, 1), (1, 0), (0, 0), (1, 1)]):
        x.fill_(control.rank + turn)
        for which in order:
            graphs[which].replay()
        eager = ops.all_reduce(x)  # beside them
        torch.cuda.synchronize()
        if 0 in order:
            assert (total == 1 + 2 * turn).all(), total
        if 1 in order:
            want = torch.tensor([2.0 * turn] * 4 + [2.0 * (turn + 1)] * 4)
            assert torch.equal(joined.cpu(), want.expand(4, 8)), joined
        assert (eager == 1 + 2 * turn).all()
    del graphs
    tp.destroy()
    dist.destroy_process_group()


def test_two_graphs_interleaved() -> None:
    run(two_graphs)


def own_communicator(control: Control) -> list[float]:
    device = join(control)
    comm = PyNcclCommunicator(dist.group.WORLD, device)  # type: ignore[arg-type]
    x = torch.ones(8, device=device)
    stream = torch.cuda.Stream()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        y = comm.all_reduce(x)
    x.fill_(control.rank + 3.0)
    graph.replay()
    torch.cuda.synchronize()
    on_another = comm.all_reduce(x, stream=stream)
    torch.cuda.current_stream().wait_stream(stream)
    values = [float(y[0]), float(on_another[0])]
    del graph
    comm.destroy()
    dist.destroy_process_group()
    return values


def test_a_communicator_beside_c10d() -> None:
    assert run(own_communicator) == [[7.0, 7.0]] * WORLD


def outlived(control: Control) -> list[float]:
    device = join(control)
    connect_gpus(dist.group.WORLD, device)  # type: ignore[arg-type]
    x = torch.ones(8, device=device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = ops.all_reduce(x)
    dist.destroy_process_group()
    values = []
    for factor in (2.0, 3.0):
        x.fill_(factor)
        graph.replay()
        torch.cuda.synchronize()
        values.append(float(y[0]))
    del graph
    control.init(timeout_s=120.0, again="second")  # frees what the graph kept
    dist.all_reduce(x)
    values.append(float(x[0]))
    dist.destroy_process_group()
    return values


def test_a_graph_outlives_its_group() -> None:
    assert run(outlived) == [[4.0, 6.0, 6.0]] * WORLD


def not_connected(control: Control) -> str:
    device = join(control)
    x = torch.ones(8, device=device)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            ops.all_reduce(x)
    except Exception as error:
        # Leaving the capture may say more after it.
        first = error.__context__ or error
        return f"{type(first).__name__}: {first}"
    return "nothing"


@pytest.mark.skipif(torch.__version__ < "2.12", reason="torch cannot tell that a stream captures")
def test_the_first_call_is_not_made_in_a_capture() -> None:
    for words in run(not_connected):
        assert "before the capture" in words
