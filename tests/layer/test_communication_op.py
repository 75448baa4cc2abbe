"""FastVideo's calls on the parallel groups, and the helpers around them."""

from __future__ import annotations

from unittest import mock

import pytest
import torch
from torch import Tensor
from torch.distributed import ReduceOp

from c10d import cases
from fastvideo_dist import communication_op as co
from fastvideo_dist import get_tp_group, utils
from fastvideo_dist import parallel_state as ps
from harness import run_ranks
from layer.jobs import job

WORLDS = pytest.mark.parametrize("world_size", [1, 2, 3, 4])
DTYPES = [torch.float32, torch.int64, torch.bool, torch.complex64, torch.bfloat16]


def check_round_trip(rank: int, world_size: int) -> None:
    with job(rank, world_size):
        for dtype in [*DTYPES, torch.float8_e4m3fn]:
            for length in (1, 7, 8):
                whole = cases.make(0, (2, length, 3, 4), dtype).transpose(0, 3)
                part, original = co.sequence_model_parallel_shard(whole, dim=1)
                assert original == length
                assert part.size(1) == -(-length // world_size)
                back = co.sequence_model_parallel_all_gather_with_unpad(part, original, dim=1)
                cases.same_bits(back.contiguous(), whole.contiguous(), (dtype, length))
                gathered = co.sequence_model_parallel_all_gather(part, dim=1)
                assert gathered.size(1) == part.size(1) * world_size
                padding = gathered[:, length:].contiguous().reshape(-1).view(torch.uint8)
                assert not padding.any()
        x = cases.make(rank, (2, 5, 2 * world_size, 3), torch.float32)
        heads = co.sequence_model_parallel_all_to_all_4D(x)
        assert heads.shape == (2, 5 * world_size, 2, 3)
        back = co.sequence_model_parallel_all_to_all_4D(heads, scatter_dim=1, gather_dim=2)
        cases.same_bits(back, x, "all_to_all_4D")


@WORLDS
def test_shard_and_gather_are_inverse(world_size: int) -> None:
    run_ranks(check_round_trip, world_size)


def check_gradients(rank: int, world_size: int) -> None:
    """A model of one weight on a padded sequence: the gradient is that of one process."""
    with job(rank, world_size):
        whole = cases.make(0, (1, 7, 3), torch.float64)
        weight = cases.make(1, (3, 3), torch.float64)
        alone = whole.clone().requires_grad_()
        (alone @ weight).pow(2).sum().backward()

        x = whole.clone().requires_grad_()
        part, length = co.sequence_model_parallel_shard(x, dim=1)
        y = co.sequence_model_parallel_all_gather_with_unpad(part @ weight, length, dim=1)
        y.pow(2).sum().backward()
        # Each rank computes the same loss; shard divides what all_gather's backward summed.
        torch.testing.assert_close(x.grad, alone.grad)


@WORLDS
def test_gradients_through_a_padded_shard(world_size: int) -> None:
    run_ranks(check_gradients, world_size)


def check_tensor_parallel(rank: int, world_size: int) -> None:
    with job(rank, world_size, tp=world_size, sp=1):
        x = torch.full((2, 3), float(rank), requires_grad=True)
        y = co.tensor_model_parallel_all_reduce(x)
        assert (y == sum(range(world_size))).all()
        y.sum().backward()
        # FastVideo's CPU path gives 1 here, without a word.
        assert (x.grad == world_size).all()
        assert (x == rank).all()
        gathered = co.tensor_model_parallel_all_gather(x)
        assert gathered.shape == (2, 3 * world_size)
        assert co.tensor_model_parallel_all_gather(x, dim=0).shape == (2 * world_size, 3)


@WORLDS
def test_tensor_parallel(world_size: int) -> None:
    run_ranks(check_tensor_parallel, world_size)


def block(x: Tensor) -> Tensor:
    part, length = co.sequence_model_parallel_shard(x, dim=1)
    heads = co.sequence_model_parallel_all_to_all_4D(part, scatter_dim=2, gather_dim=1)
    heads = torch.nn.functional.silu(heads)
    part = co.sequence_model_parallel_all_to_all_4D(heads, scatter_dim=1, gather_dim=2)
    part = part + co.tensor_model_parallel_all_reduce(part)
    part = part * get_tp_group().all_reduce(part.detach(), ReduceOp.MAX)
    return co.sequence_model_parallel_all_gather_with_unpad(part, length, dim=1)


def check_compile(rank: int, world_size: int) -> None:
    with job(rank, world_size, tp=world_size):
        compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
        for length in (8, 7, 12):
            x = cases.make(0, (1, length, 2 * world_size, 4), torch.float32)
            mine, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
            wanted, result = block(theirs), compiled(mine)
            torch.testing.assert_close(result, wanted)
            wanted.sum().backward()
            result.sum().backward()
            torch.testing.assert_close(mine.grad, theirs.grad)


@pytest.mark.parametrize("world_size", [1, 2])
def test_the_calls_compile_into_one_graph(world_size: int) -> None:
    run_ranks(check_compile, world_size, timeout=110)


def check_names(rank: int, world_size: int) -> None:
    with job(rank, world_size), mock.patch.object(co, "get_sp_world_size", return_value=4):
        padded = mock.Mock(wraps=co.pad_sequence_tensor)
        with mock.patch.object(co, "pad_sequence_tensor", padded):
            co.sequence_model_parallel_shard(torch.ones(1, 6), dim=1)
        assert padded.call_args.args[1] == 8


def test_names_are_looked_up_when_called() -> None:
    run_ranks(check_names, 2)


def check_warm_up(rank: int, world_size: int) -> None:
    co.warmup_sequence_parallel_communication()  # there is nothing to warm up yet
    with job(rank, world_size):
        for _ in range(2):  # a second group is warmed up again
            spy = mock.Mock(wraps=co.sequence_model_parallel_all_to_all_4D)
            with mock.patch.object(co, "sequence_model_parallel_all_to_all_4D", spy):
                co.warmup_sequence_parallel_communication()
                co.warmup_sequence_parallel_communication(torch.device("cpu"))
            assert spy.call_count == (2 if world_size > 1 else 0)
            ps.destroy_model_parallel()
            ps.initialize_model_parallel(1, world_size)


@pytest.mark.parametrize("world_size", [1, 3])
def test_warm_up(world_size: int) -> None:
    run_ranks(check_warm_up, world_size)


def test_padding() -> None:
    assert utils.compute_padding_for_sp(7, 4) == (8, 1)
    assert utils.compute_padding_for_sp(8, 4) == (8, 0)
    assert utils.compute_padding_for_sp(0, 4) == (0, 0)
    with pytest.raises(ValueError, match="0 ranks"):
        utils.compute_padding_for_sp(7, 0)
    for dtype in [*DTYPES, torch.float8_e4m3fn]:
        x = cases.make(0, (2, 3, 4), dtype)
        y = utils.pad_sequence_tensor(x, 5, seq_dim=-2)
        assert y.shape == (2, 5, 4)
        cases.same_bits(utils.unpad_sequence_tensor(y, 3).contiguous(), x, dtype)
        assert utils.pad_sequence_tensor(x, 3) is x
    assert (utils.pad_sequence_tensor(torch.ones(1, 2), 3, 1, 9.0) == torch.tensor([1, 1, 9])).all()
    with pytest.raises(ValueError, match=r"6 asked for.*has 3"):
        utils.unpad_sequence_tensor(x, 6)
    with pytest.raises(ValueError, match="no dimension 3"):
        utils.pad_sequence_tensor(x, 6, 3)


def test_dividing() -> None:
    assert utils.divide(12, 4) == 3
    with pytest.raises(ValueError, match="12 is not divisible by 5"):
        utils.divide(12, 5)
    with pytest.raises(ValueError, match="by 0"):
        utils.ensure_divisibility(12, 0)
    x = torch.arange(12).reshape(2, 6)
    parts = utils.split_tensor_along_last_dim(x, num_partitions=3)
    assert all(part.data_ptr() >= x.data_ptr() for part in parts)
    copies = utils.split_tensor_along_last_dim(x, 3, contiguous_split_chunks=True)
    assert all(copy.is_contiguous() for copy in copies)
    assert torch.equal(torch.cat(list(copies), -1), x)
    with pytest.raises(ValueError, match="6 is not divisible by 4"):
        utils.split_tensor_along_last_dim(x, 4)
    with pytest.raises(ValueError, match="no last one"):
        utils.split_tensor_along_last_dim(torch.tensor(1), 1)
