"""How a rank comes into a group and leaves it: what `Communicator` is before it calls anything."""

from __future__ import annotations

import math
import operator
from array import array
from datetime import timedelta
from types import TracebackType
from typing import Any, TypeVar

import torch
from torch.distributed.constants import default_pg_timeout

from fastvideo_dist._compat import extension
from fastvideo_dist.nccl.buffers import buffer_of
from fastvideo_dist.nccl.checks import Checks, translated
from fastvideo_dist.nccl.errors import NcclInvalid
from fastvideo_dist.nccl.grouping import is_open
from fastvideo_dist.nccl.unique_id import UniqueId

__all__ = ["Place"]

_Self = TypeVar("_Self", bound="Place")

_LONGEST = 100 * 365 * 86400.0  # "forever" in seconds, of which clocks of 64 bits hold no more


class Place(Checks):
    """Creation, `split` and the end. See `Communicator`."""

    __slots__ = ()

    # ---- life ----------------------------------------------------------------------------------

    @classmethod
    def init(
        cls: type[_Self],
        nranks: int,
        rank: int,
        unique_id: UniqueId,
        config: None = None,
        *,
        timeout: float | timedelta | None = None,
        name: str = "",
        device: torch.device | str | None = None,
    ) -> _Self:
        """Meets the other ranks: collective, and blocking until all have come.

        Args:
            nranks: 1 to 256, the same on all ranks.
            rank: 0 to nranks - 1, another one on each; every rank is a process of its own.
            unique_id: the same on all ranks, of one rank's `get_unique_id`. It may be used once.
            config: NCCL's settings, which cannot be given here; must be None.
            timeout: of this and every later call, in seconds; 30 minutes if not given.
            name: for messages; made from the id if not given.
            device: where all buffers must be; if not given, each call may choose, alike on all
                ranks.

        Raises:
            NcclInvalid: an argument that cannot be; an id that was used, is no id, or belongs to
                another host or user.
            torch.distributed.DistBackendError: not all ranks came, or the process that made the id
                has ended.
        """
        communicator = cls()
        communicator.initialize(
            nranks, rank, unique_id, config, timeout=timeout, name=name, device=device
        )
        return communicator

    def initialize(
        self,
        nranks: int,
        rank: int,
        unique_id: UniqueId,
        config: None = None,
        *,
        timeout: float | timedelta | None = None,
        name: str = "",
        device: torch.device | str | None = None,
    ) -> None:
        """`init` on a null communicator."""
        if self._raw is not None:
            raise NcclInvalid("Communicator is already initialized")
        if not isinstance(unique_id, UniqueId):
            raise NcclInvalid(f"unique_id must be a UniqueId, got {type(unique_id).__name__}")
        if config is not None:
            raise NcclInvalid("config must be None: settings of NCCL cannot be given here")
        if is_open():
            raise NcclInvalid("init: not between group_start and group_end")
        size = _whole_number("nranks", nranks)
        place = _whole_number("rank", rank)
        if not 0 <= place < size:
            raise NcclInvalid(f"init: rank {place} of {size} ranks; there are 0 to {size - 1}")
        seconds = _seconds(timeout)
        where = _device(device)
        raw = translated(extension().Communicator, unique_id.as_bytes, place, size, name, seconds)
        self._settle(raw, place, size, name or raw.name, unique_id.as_bytes.hex(), where)

    def _settle(
        self, raw: Any, rank: int, size: int, name: str, where: str, device: torch.device | None
    ) -> None:
        self._raw, self._rank, self._size = raw, rank, size
        self._name, self._where, self._device = name, where, device

    def split(self: _Self, color: int | None = None, key: int = 0, config: None = None) -> _Self:
        """New communicators, one of the ranks of each color. Collective over this one.

        Args:
            color: 0 or above; None for a rank that takes part in none, and gets a null
                communicator.
            key: ranks are numbered by key, those of equal keys by their rank here.
            config: must be None.
        """
        raw = self._live("split")
        if config is not None:
            self._refuse("split", "config must be None")
        if is_open():
            self._refuse("split", "not between group_start and group_end")
        chosen = -1 if color is None else self._int("split", "color", color)
        if color is not None and chosen < 0:
            self._refuse("split", f"color {chosen} is negative; None takes part in no group")
        try:
            mine = array("q", [chosen, self._int("split", "key", key)])
        except OverflowError:
            self._refuse("split", f"color {color} or key {key} does not fit 64 bits")
        table = array("q", bytes(2 * mine.itemsize * self._size))
        translated(raw.gather, buffer_of(mine, False), buffer_of(table, True), None, None)
        number, self._splits = self._splits, self._splits + 1
        child = type(self)()
        if color is None:
            return child
        colors, keys = table[0::2], table[1::2]
        ranks = [rank for rank in range(self._size) if colors[rank] == chosen]
        ranks.sort(key=lambda rank: (keys[rank], rank))
        place = f"split/{number}/{chosen}"
        name = f"{self._name}/{number}.{chosen}"
        rank = ranks.index(self._rank)
        part = translated(raw.split, place, rank, len(ranks), name)
        child._settle(part, rank, len(ranks), name, f"{self._where}/{place}", self._device)
        return child

    def finalize(self) -> None:
        """Nothing to do: a call on CPU memory is done when it returns."""

    def destroy(self) -> None:
        """Leaves the group; its custom reductions are closed. Ranks that still wait for this one
        raise. Not collective, idempotent."""
        self._leave(None)

    def abort(self) -> None:
        """Ends every call under way, here (in other threads) and on all ranks, which raise.

        The communicator is unusable everywhere afterwards. Not collective, idempotent.
        """
        self._leave("abort() was called")

    def _leave(self, reason: str | None) -> None:
        self.close_all_resources()
        raw = self._raw
        self._forget()
        if raw is None:
            return
        if reason is not None:
            raw.abort(reason)
        raw.close()

    def close_all_resources(self) -> None:
        """Closes what `create_pre_mul_sum` has made."""
        for custom in list(self._customs):
            custom.close()

    def __enter__(self: _Self) -> _Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """`destroy`; if the block raised, `abort` with its words, as the others may be waiting."""
        self._leave(None if error is None else f"{type(error).__name__}: {error}")

    # ---- what it is ----------------------------------------------------------------------------

    @property
    def is_valid(self) -> bool:
        """Initialized, and neither destroyed nor aborted here."""
        return self._raw is not None

    @property
    def nranks(self) -> int:
        self._live("get nranks")
        return self._size

    @property
    def rank(self) -> int:
        self._live("get rank")
        return self._rank

    @property
    def name(self) -> str:
        """As messages call it; the same on all ranks."""
        self._live("get name")
        return self._name

    @property
    def device(self) -> torch.device | None:
        """Where all buffers must be; None: where each call's are."""
        self._live("get device")
        return self._device

    def __repr__(self) -> str:
        if self._raw is None:
            return "<Communicator: null>"
        return f"<Communicator: {self._name}, rank={self._rank}/{self._size}>"


def _whole_number(name: str, value: Any) -> int:
    try:
        return operator.index(value)
    except TypeError:
        raise NcclInvalid(f"init: {name} must be an int, got {type(value).__name__}") from None


def _device(device: torch.device | str | None) -> torch.device | None:
    if device is None:
        return None
    try:
        return torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise NcclInvalid(
            f"init: device {device!r} is none: {str(error).splitlines()[0]}"
        ) from None


def _seconds(timeout: float | timedelta | None) -> float:
    if timeout is None:
        timeout = default_pg_timeout
    seconds = timeout.total_seconds() if isinstance(timeout, timedelta) else float(timeout)
    if not (math.isfinite(seconds) and seconds >= 0.001):
        raise NcclInvalid(f"init: timeout must be 1 ms or more, got {timeout}")
    return min(seconds, _LONGEST)
