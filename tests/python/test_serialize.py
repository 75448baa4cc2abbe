"""Objects taken apart and put together: the same values, and no byte of a tensor in the pickle."""

from __future__ import annotations

import collections
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode

from fastvideo_dist._compat import extension
from fastvideo_dist.serialize import flatten, pack, unflatten, unpack

DTYPES = sorted(
    {value for value in vars(torch).values() if isinstance(value, torch.dtype)}, key=str
)
LARGE = 1 << 16  # a pickle with this in it shows it


def storable(dtype: torch.dtype) -> bool:
    """Quantised types and those narrower than a byte have no plain tensors."""
    try:
        torch.empty(2, dtype=dtype).view(torch.uint8)
    except (RuntimeError, NotImplementedError, TypeError):
        return False
    return not str(dtype).startswith("torch.q")


PLAIN = [dtype for dtype in DTYPES if storable(dtype)]


def through(obj: object) -> Any:
    """As a queue does it: the buffers arrive in other memory."""
    header, buffers = pack(obj)
    assert all(buffer.ndim == 1 and buffer.format == "B" for buffer in buffers)
    return unpack(header, [bytearray(buffer) for buffer in buffers])


def bits(tensor: Tensor) -> Tensor:
    plain = tensor.detach().resolve_conj().resolve_neg().contiguous()
    return plain.reshape(-1).view(torch.uint8)


def random(dtype: torch.dtype, *shape: int) -> Tensor:
    """Any bits, but for bool, of which only two are allowed."""
    if dtype is torch.bool:
        return torch.rand(shape) < 0.5
    count = int(np.prod(shape)) * dtype.itemsize
    return torch.randint(0, 256, (count,), dtype=torch.uint8).view(dtype).reshape(shape)


def check(tensor: Tensor, again: Tensor) -> None:
    assert type(again) is Tensor
    assert (again.dtype, again.shape) == (tensor.dtype, tensor.shape)
    assert again.requires_grad == tensor.requires_grad
    assert torch.equal(bits(again), bits(tensor))
    assert not tensor.numel() or again.data_ptr() != tensor.data_ptr()


def test_the_list_of_dtypes_is_whole() -> None:
    needed = {torch.bool, torch.bfloat16, torch.complex32, torch.complex64, torch.complex128}
    needed |= {torch.float8_e4m3fn, torch.float8_e5m2, torch.uint16, torch.int64, torch.float64}
    assert needed <= set(PLAIN)


@pytest.mark.parametrize("dtype", PLAIN, ids=str)
def test_every_dtype_and_shape(dtype: torch.dtype) -> None:
    for shape in [(), (1,), (0,), (3, 0, 2), (5,), (2, 3, 4)]:
        tensor = random(dtype, *shape)
        check(tensor, through(tensor))
        check(tensor, unflatten(flatten(tensor)))


@pytest.mark.parametrize(
    "tensor",
    [
        torch.arange(24.0).reshape(4, 6).t(),
        torch.arange(24.0).reshape(4, 6)[:, ::2],
        torch.arange(24.0).reshape(4, 6)[1:3, 2:5],
        torch.arange(5.0).expand(3, 5),
        torch.arange(120.0).reshape(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
        torch.arange(120.0).reshape(2, 3, 4, 5).permute(3, 1, 0, 2),
        torch.arange(24.0)[7:],
        torch.arange(24.0)[3],
        torch.randn(4, dtype=torch.complex64).conj(),
        torch.randn(4, dtype=torch.complex64).conj().imag,
        torch.randn(4, requires_grad=True),
        torch.randn(4, 4, requires_grad=True).t() * 2,
    ],
    ids=range(12),
)
def test_any_strides(tensor: Tensor) -> None:
    again = through(tensor)
    check(tensor, again)
    dense = torch.ops.aten.is_non_overlapping_and_dense(tensor)
    assert again.stride() == (tensor.stride() if dense else tensor.contiguous().stride())
    assert again.is_leaf
    assert not again.is_conj()


@pytest.mark.parametrize(
    "obj",
    [
        torch.randn(LARGE),
        torch.randn(256, 256).t(),
        torch.randn(256, 512)[:, ::2],
        torch.nn.Parameter(torch.randn(LARGE)),
        np.random.rand(LARGE),
        np.random.rand(256, 256).T,
        np.random.rand(256, 512)[:, ::2],
        np.random.rand(LARGE)[::-1],
        np.arange(LARGE).astype("M8[s]"),
        np.zeros(LARGE, dtype=[("a", "i4"), ("b", "f8")]),
    ],
    ids=lambda obj: type(obj).__name__,
)
def test_no_bytes_in_the_pickle(obj: Any) -> None:
    header, buffers = pack({"x": [obj]})
    assert len(header) < 1000
    assert sum(buffer.nbytes for buffer in buffers) == obj.nbytes


def test_a_tensor_is_not_copied_before_it_is_sent() -> None:
    tensor = torch.zeros(8)
    _, (buffer,) = pack(tensor)
    tensor[0] = 1
    assert bytes(buffer[:4]) == np.float32(1).tobytes()


def test_large_bytes_are_buffers_and_arrive_without_a_copy_if_those_are_bytes() -> None:
    large, larger = bytes(LARGE), b"x" * 1_000_000
    obj = [large, {"again": large}, larger, b"y" * (LARGE - 1), "z" * LARGE, bytearray(LARGE)]
    header, buffers = pack(obj)
    assert [buffer.obj for buffer in buffers] == [large, larger]
    assert len(header) < 4 * LARGE
    again = unpack(header, [large, larger])
    assert again == obj == unpack(header, map(bytearray, buffers)) == unflatten(flatten(obj))
    assert again[0] is large
    assert again[1]["again"] is large
    assert again[2] is larger
    assert [type(value) for value in through(obj)] == [type(value) for value in obj]


def test_a_text_that_looks_like_the_announcement_of_bytes() -> None:
    announcement = (pickle.BINBYTES + LARGE.to_bytes(4, "little")).decode("latin1")
    for obj in [[announcement, "z" * LARGE], [announcement.encode("latin1"), bytes(LARGE)]]:
        assert through(obj) == obj


def test_what_arrives_is_writable_and_lives_on() -> None:
    header, buffers = pack((torch.ones(5), np.ones(5)))
    memory = [bytearray(buffer) for buffer in buffers]
    tensor, array = unpack(header, memory)
    del memory, header, buffers
    tensor += 1
    array += 1
    assert tensor.tolist() == array.tolist() == [2] * 5


def test_read_only_buffers_do_not_become_writable_tensors() -> None:
    header, buffers = pack(torch.ones(5))
    memory = [bytes(buffer) for buffer in buffers]
    tensor = unpack(header, memory)
    tensor.zero_()
    assert bytes(memory[0][:4]) == np.float32(1).tobytes()


@pytest.mark.parametrize(
    "array",
    [
        np.float16([1, 2, 3]),
        np.array(3.5),
        np.zeros((0, 3)),
        np.asfortranarray(np.arange(12).reshape(3, 4)),
        np.arange(24).reshape(4, 6)[::-1, ::2],
        np.array(["2020-01-01", "1999-12-31"], dtype="M8[D]"),
        np.array([[1, 2]], dtype="m8[ms]"),
        np.array(["a", "bcd"]),
        np.array([b"x", None, {"y": 1}], dtype=object),
        np.arange(6).astype(">i4"),
        np.zeros(3, dtype=[("a", "i4"), ("b", "f8")]),
        np.ma.masked_array([1, 2], mask=[True, False]),
    ],
    ids=range(12),
)
def test_arrays(array: Any) -> None:
    again = through(array)
    assert type(again) is type(array)
    assert (again.dtype, again.shape) == (array.dtype, array.shape)
    assert np.array_equal(again, array)
    assert again.flags.writeable


Point = collections.namedtuple("Point", "x y")


@pytest.mark.parametrize(
    "obj",
    [None, 0, "", b"", (), {}, b"x" * LARGE, 1 << 200, {1: [2, (3, {4})]}, Point(1, "y"), len, int],
    ids=range(12),
)
def test_other_objects(obj: object) -> None:
    assert through(obj) == obj
    assert unflatten(flatten(obj)) == obj


def test_identity_within_one_object() -> None:
    tensor = torch.ones(3)
    first, second, view = through([tensor, tensor, tensor[:2]])
    assert first is second
    assert view.data_ptr() != first.data_ptr()


def test_parameters_attributes_and_modules() -> None:
    tensor = torch.ones(3)
    tensor.label = "mine"
    assert through(tensor).label == "mine"
    module = torch.nn.Linear(4, 3)
    again = through(module)
    assert isinstance(again.weight, torch.nn.Parameter)
    assert torch.equal(again.weight, module.weight)
    assert again.weight.requires_grad


def test_sparse_and_meta_pickle_as_they_do() -> None:
    assert torch.equal(through(torch.eye(3).to_sparse()).to_dense(), torch.eye(3))
    assert through(torch.empty(3, device="meta")).device.type == "meta"


def test_only_a_tensor_with_memory_of_its_own_has_memory() -> None:
    with FakeTensorMode():
        fake = torch.empty(1000)
    for tensor in (fake, torch._efficientzerotensor(1000)):
        with pytest.raises(TypeError, match="memory of its own"):
            extension().memory_of(tensor)


def test_what_does_not_pickle_says_so() -> None:
    with pytest.raises((pickle.PicklingError, AttributeError)):
        pack(lambda: None)


def test_a_flat_tensor_that_is_none() -> None:
    whole = flatten({"x": torch.arange(100)})
    assert whole.dtype is torch.uint8
    for length in range(0, 64, 8):
        with pytest.raises(ValueError, match="unflatten"):
            unflatten(whole[:length].clone())
    with pytest.raises(ValueError, match="a part of"):
        unflatten(whole[:256].clone())
