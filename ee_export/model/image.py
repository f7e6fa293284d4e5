"""The common base of trunks for images: patches, and no padding."""

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from ee_export.errors import BadRequest
from ee_export.model.early_exit import EarlyExitConfig, EarlyExitModel, Part, trunk_part
from ee_export.package.encoding import UNSTATED


@dataclass(kw_only=True)
class ImageConfig(EarlyExitConfig):
    """The fields of a trunk for images, besides the stock ones. See :class:`EarlyExitConfig`.

    ``image_mode``: mode ``L`` or ``RGB`` in which a page is decoded before it becomes three channels. ``resize``: order
    of a resize's passes, see :func:`ee_export.data.resize.resize_to_square`. ``image_mean``, ``image_std``: normalise
    values in [0, 1].
    """

    BEFORE_ENCODER = ("vision",)

    exits: list[str] | tuple[str, ...] | None = None
    heads: dict[str, Any] | None = None
    encoding: dict[str, Any] | None = None
    image_size: int = 224  # a pair in some stock configurations, but not in this one
    image_mode: str = "RGB"
    resize: str = UNSTATED
    image_mean: list[float] | tuple[float, ...] = (0.5, 0.5, 0.5)
    image_std: list[float] | tuple[float, ...] = (0.5, 0.5, 0.5)
    # All pages are encoded alike. Such a trunk gets the two special tokens of the text, and does not read them.
    max_text_tokens: int = 2
    max_position_embeddings: int = 4
    vocab_size: int = 261
    bos_token_id: int = 0
    pad_token_id: int = 1
    eos_token_id: int = 2

    @property
    def any_size(self) -> bool:
        """True if the trunk accepts images of another size than ``image_size``."""
        return False

    @property
    def input_size(self) -> int:
        """Side of the square input image in pixels, from ``encoding`` if it states one, else ``image_size``.

        Raises:
            BadRequest: ``encoding`` states another size than ``image_size``, and the trunk accepts no other.
        """
        size: int = (self.encoding or {}).get("image_size", self.image_size)
        if size != self.image_size and not self.any_size:
            raise BadRequest(
                f"pages become images of {size} x {size} pixels, and this trunk has positions for {self.image_size} x "
                f"{self.image_size}; take the image processor that the model was trained with"
            )
        return size


class EarlyExitImage(EarlyExitModel):
    """The forward pass of a trunk for images, except its layers.

    The stock trunk has its transformers name as an attribute, and ``base_model`` too.
    """

    INPUTS: ClassVar[tuple[str, ...]] = ("pixel_values",)

    def add_heads(self, image_size: int) -> None:
        """See :meth:`EarlyExitModel.add_heads`.

        Raises:
            BadRequest: the trunk does not read three channels.
        """
        if self.config.num_channels != 3:
            raise BadRequest(
                f"num_channels is {self.config.num_channels}: expected 3, pages become images of 3 channels"
            )
        super().add_heads(image_size)

    def patch_parts(self) -> list[Part]:
        """All parts before the encoder: the embeddings of the patches, and the vision exit."""
        return self.vision_parts(trunk_part(_embeddings, self.base_model, ("pixel_values",), ("hidden.0",)))

    def features(self, **inputs: Tensor) -> dict[str, Tensor]:
        """See :meth:`EarlyExitModel.features`."""
        pixels = inputs["pixel_values"]
        states = self.base_model(pixels, output_hidden_states=True).hidden_states
        return {
            name: pixels if self.feature(name) == "pixels" else self.pool(name, states[self.config.depth(name)])
            for name in self.config.exit_names()
        }


def projections(attention: Any) -> tuple[nn.Linear, nn.Linear, nn.Linear]:
    """Query, key and value of a layer's attention."""
    return attention.q_proj, attention.k_proj, attention.v_proj


def _embeddings(stock: Any, pixel_values: Tensor) -> Any:
    return stock.embeddings(pixel_values)
