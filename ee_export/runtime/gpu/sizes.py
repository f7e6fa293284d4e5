"""Batch sizes and text lengths of a chain on a GPU, and shapes of tensors at these sizes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ee_export.errors import BadRequest
from ee_export.package.manifest import TensorSpec
from ee_export.package.recipe import TargetRecipe
from ee_export.runtime.gpu.arrays import size_of

_BATCHES = (1, 2, 4, 8, 16)
_LENGTHS = (64, 128, 256, 384)


@dataclass(frozen=True, slots=True)
class Sizes:
    """Batch sizes and text lengths of a chain.

    ``batches``, ``lengths``: rising numbers of pages and of text tokens (``T``). A batch runs in the least size that holds it, and
    leaves the last rows and tokens unused. ``lengths`` is empty if no segment has ``T``. ``visual``: visual tokens, ``L`` − ``T``.
    ``padding``: value of a page's unused tokens, by input, 0 by default.
    """

    batches: tuple[int, ...]
    lengths: tuple[int, ...] = ()
    visual: int = 0
    padding: Mapping[str, float] | None = None

    def __post_init__(self) -> None:
        for name, numbers in (("batches", self.batches), ("lengths", self.lengths)):
            if list(numbers) != sorted(set(numbers)) or any(number < 1 for number in numbers):
                raise BadRequest(f"{name} are {numbers}; expected rising numbers, 1 or more")
        if not self.batches:
            raise BadRequest("no batch sizes; expected at least one")

    def batch(self, rows: int) -> int:
        """The least batch size that holds so many pages. Raises BadRequest, which names the limit, if none does."""
        return _least(self.batches, rows, "pages")

    def length(self, tokens: int) -> int:
        """The least length that holds so many text tokens. Raises BadRequest, which names the limit, if none does."""
        return _least(self.lengths, tokens, "text tokens")

    def axes(self, rows: int, tokens: int) -> dict[str, int]:
        """Sizes of the axes ``B``, ``T`` and ``L``."""
        return {"B": rows, "T": tokens, "L": tokens + self.visual}

    def most_bytes(self, spec: TensorSpec) -> int:
        """Bytes of a tensor for the largest batch and length."""
        most = self.axes(self.batches[-1], self.lengths[-1] if self.lengths else 0)
        return size_of(shape_of(spec, most), spec.dtype)


def _least(numbers: Sequence[int], count: int, unit: str) -> int:
    for number in numbers:
        if number >= count:
            return number
    raise BadRequest(
        f"{count} {unit}: this chain was opened for {numbers[-1] if numbers else 0} at most; open it for more"
    )


def shape_of(spec: TensorSpec, axes: Mapping[str, int]) -> tuple[int, ...]:
    """A tensor's shape with numbers for its symbolic axes."""
    return tuple(axis if isinstance(axis, int) else axes[axis] for axis in spec.shape)


def has_length(spec: TensorSpec) -> bool:
    """True for a tensor whose shape depends on the text's length."""
    return "T" in spec.shape or "L" in spec.shape


def sizes_of(recipe: TargetRecipe, longest: int, visual: int, padding: dict[str, float]) -> Sizes:
    """The batch sizes and text lengths of a chain: a few that rise by steps and fit the recipe's profiles.

    ``longest``: text tokens of the model's longest page, 0 for a model that reads no text.
    """
    profiles = recipe.profiles(max(longest, 1))
    batches = {profile.batch.max for profile in profiles} | set(_BATCHES)
    lengths = {profile.text.max for profile in profiles} | set(_LENGTHS)
    return Sizes(
        tuple(sorted(size for size in batches if any(p.batch.min <= size <= p.batch.max for p in profiles))),
        tuple(sorted(size for size in lengths if any(p.text.min <= size <= p.text.max for p in profiles)))
        if longest
        else (),
        visual,
        padding,
    )
