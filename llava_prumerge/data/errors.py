"""What all refused samples have in common."""

from __future__ import annotations

from llava_prumerge.ground.errors import InputError


class SampleError(InputError):
    """A sample that cannot be used; its subclasses say of which kind.

    Args:
        reason: "kind: detail"; reports count by `kind`.
        sample_id: the record's id, where known. It may be left out, as data-loader workers rebuild exceptions from
            their message alone.
    """

    def __init__(self, reason: str, sample_id: str | None = None) -> None:
        super().__init__(reason if sample_id is None else f"sample {sample_id}: {reason}")
        self.reason = reason
        self.sample_id = sample_id

    @property
    def kind(self) -> str:
        """The part of the reason that is the same for all samples with this fault."""
        return self.reason.split(":", 1)[0]
