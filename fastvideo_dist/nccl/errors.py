"""What is wrong with the arguments of a call. What goes wrong between ranks is torch's.

`torch.distributed.DistBackendError` is raised when ranks disagree, die, abort or do not come; see
docs/errors.md.
"""

from __future__ import annotations

__all__ = ["NcclInvalid", "NcclUnsupported"]


class NcclInvalid(Exception):
    """Arguments that this rank alone can tell are wrong. Nothing was sent, the communicator is
    usable. May be pickled."""

    def __init__(self, msg: str) -> None:
        super().__init__(msg)
        self.msg = msg

    def __reduce__(self) -> tuple[type[NcclInvalid], tuple[str]]:
        return type(self), (self.msg,)

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.msg}>"


class NcclUnsupported(NcclInvalid, NotImplementedError):
    """Right, but no transport of this version can do it."""
