"""The early-exit Swin classifier for images: the stock trunk and classifier with a head at every exit."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import SwinConfig, SwinModel
from transformers.conversion_mapping import get_checkpoint_conversion_mapping, register_checkpoint_conversion_mapping
from transformers.models.swin.modeling_swin import SwinLayer, SwinPatchMerging, SwinPreTrainedModel

from ee_export.errors import BadRequest
from ee_export.model.attention import attend
from ee_export.model.early_exit import Part, trunk_part
from ee_export.model.image import projections
from ee_export.model.stages import EarlyExitStages, StagesConfig


@dataclass(frozen=True, slots=True)
class Stage:
    """A stage after the cut.

    ``merge`` is first, and merges a grid of ``before`` x ``before`` positions to ``side`` x ``side``.
    """

    side: int
    blocks: Sequence[SwinLayer]
    before: int
    merge: SwinPatchMerging | None


@strict
class EarlyExitSwinConfig(StagesConfig, SwinConfig):
    """Swin's configuration with exits, see :class:`StagesConfig`."""

    model_type = "early_exit_swin"

    patch_size: int = 4  # a pair in some stock configurations, but not in this one

    @property
    def any_size(self) -> bool:
        """See :attr:`ImageConfig.any_size`. Only absolute positions are of one size."""
        return not self.use_absolute_embeddings

    @property
    def widths(self) -> Sequence[int]:
        """See :attr:`StagesConfig.widths`."""
        return [self.embed_dim * 2**stage for stage in range(len(self.depths))]


# transformers' names of a Swin's weights differ between files and memory, depending on the type of model.
register_checkpoint_conversion_mapping(
    EarlyExitSwinConfig.model_type, get_checkpoint_conversion_mapping("swin") or [], overwrite=True
)


class EarlyExitSwin(EarlyExitStages, SwinPreTrainedModel):
    """Swin for document classification with exits.

    ``swin.*`` and ``classifier.*`` carry the names of transformers' ``SwinForImageClassification``, so a stock
    checkpoint loads into them. ``exits.*`` hold the exit heads. Hidden states are ``[B, L, H]``. Those behind a stage
    are not merged yet.
    """

    config_class = EarlyExitSwinConfig

    def __init__(self, config: EarlyExitSwinConfig) -> None:
        super().__init__(config)
        self.swin = SwinModel(config)
        self.classifier = nn.Linear(config.width_of("final"), config.num_labels)
        for number in range(1, config.num_hidden_layers + 1):
            if self._side(number) < config.window_size:
                raise BadRequest(
                    f"stage {number} has {self._side(number)} x {self._side(number)} positions, fewer than window_size "
                    f"{config.window_size}, which transformers cannot compute either; take larger images"
                )
        self.add_heads(config.input_size)
        self.post_init()

    @property
    def final_feature(self) -> str:
        """See :attr:`EarlyExitModel.final_feature`."""
        return "own"

    def final_features(self, hidden: Tensor) -> Tensor:
        """See :meth:`EarlyExitModel.final_features`. The mean of normalised rows."""
        return self.swin.layernorm(hidden).mean(1)

    @classmethod
    def depth_of(cls, parameter: str) -> int | None:
        """See :meth:`EarlyExitModel.depth_of`. A stage ends with the merge that runs at the beginning of the next one here."""
        depth = super().depth_of(parameter)
        return depth if depth is None else depth + (".downsample." in parameter)

    def parts(self, *, answer_first: bool) -> list[Part]:
        """See :meth:`EarlyExitModel.parts`."""
        stages, merge = [], None
        for number, stock in enumerate(self.swin.encoder.layers, 1):
            stages.append(Stage(self._side(number), list(stock.blocks), self._side(number - 1), merge))
            merge = stock.downsample
        embeddings = trunk_part(_embeddings, self.swin, ("pixel_values",), ("hidden.0",))
        return self.vision_parts(embeddings) + self.encoder_parts(stages, _stage, _stage, answer_first=answer_first)

    def features(self, **inputs: Tensor) -> dict[str, Tensor]:
        """See :meth:`EarlyExitModel.features`."""
        pixels = inputs["pixel_values"]
        states = self.swin(pixels, output_hidden_states=True, output_hidden_states_before_downsampling=True)
        rows = [state.flatten(2).transpose(1, 2) for state in states.reshaped_hidden_states]
        return {
            name: pixels if self.feature(name) == "pixels" else self.pool(name, rows[self.config.depth(name)])
            for name in self.config.exit_names()
        }

    def _side(self, number: int) -> int:
        """Side of the grid behind a stage in positions, 0 for the embeddings.

        An odd side is padded before it is halved.
        """
        side = -(-self.config.input_size // self.config.patch_size)
        for _ in range(number - 1):
            side = -(-side // 2)
        return side


def _embeddings(stock: SwinModel, pixel_values: Tensor) -> Tensor:
    rows: Tensor = stock.embeddings(pixel_values)[0]
    return rows


def _stage(stage: Stage, hidden: Tensor) -> Tensor:
    if stage.merge is not None:
        hidden = stage.merge(hidden, (stage.before, stage.before))
    for layer in stage.blocks:
        hidden = _layer(layer, stage.side, hidden)
    return hidden


def _layer(layer: SwinLayer, side: int, hidden: Tensor) -> Tensor:
    """A layer, ``hidden [B, side · side, H]`` before it to ``hidden`` after it."""
    batch, _, width = hidden.shape
    layer.set_shift_and_window_size((side, side))  # one window without a shift, if the grid is no larger
    window, shift = layer.window_size, layer.shift_size
    windows = -(-side // window)
    padded = windows * window
    grid = layer.layernorm_before(hidden).view(batch, side, side, width)
    if padded > side:
        grid = F.pad(grid, (0, 0, 0, padded - side, 0, padded - side))
    if shift:
        grid = torch.roll(grid, (-shift, -shift), dims=(1, 2))
    # [B, window row, row in it, window column, column in it, H] to [B, positions of a window, windows · H]
    rows = grid.view(batch, windows, window, windows, window, width).permute(0, 2, 4, 1, 3, 5)
    gathered = _attend_in_windows(layer, rows.reshape(batch, window**2, windows**2 * width), padded)
    grid = gathered.view(batch, window, window, windows, windows, width).permute(0, 3, 1, 4, 2, 5)
    grid = grid.reshape(batch, padded, padded, width)
    if shift:
        grid = torch.roll(grid, (shift, shift), dims=(1, 2))
    attended = hidden + layer.drop_path(grid[:, :side, :side].reshape(hidden.shape))
    changed = layer.dropout(layer.mlp(layer.layernorm_after(attended).flatten(0, 1))).view(hidden.shape)
    result: Tensor = attended + changed
    return result


def _attend_in_windows(layer: SwinLayer, rows: Tensor, side: int) -> Tensor:
    """Attention of every position within its window of N positions, in the shape of ``rows [B, N, windows · H]``.

    The heads of all windows stand side by side, as heads of one sequence of N rows. So the bias, which differs between
    shifted windows, is one constant ``[1, windows · h, N, N]`` for all pages.
    """
    attention = layer.attention
    width, heads = attention.o_proj.in_features, attention.num_attention_heads
    bias = attention.relative_position_bias()
    mask = layer.get_attn_mask(side, side, dtype=rows.dtype, device=rows.device)
    windows = rows.shape[2] // width
    bias = bias.expand(windows, -1, -1, -1) if mask is None else bias + mask.unsqueeze(1)

    def every(projection: nn.Linear) -> Callable[[Tensor], Tensor]:
        return lambda values: projection(values.reshape(-1, width)).view(values.shape)

    dropout = attention.attention_dropout if layer.training else 0.0
    context = attend(
        [every(linear) for linear in projections(attention)], windows * heads, rows, bias.flatten(0, 1)[None], dropout
    )
    gathered: Tensor = layer.dropout(attention.o_proj(context.reshape(-1, width)))
    return gathered
