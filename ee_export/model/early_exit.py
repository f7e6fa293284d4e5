"""The common base of early-exit models: a head at each exit, and a forward pass in parts that can be cut apart."""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from ee_export.errors import BadRequest, require_known
from ee_export.model.exits import HeadSpec, head_specs, order_exits
from ee_export.model.heads import Gate, PixelRamp, Ramp, masked_mean
from ee_export.model.parts import Part, find_parts_needed_for
from ee_export.package.encoding import band_of
from ee_export.package.manifest import SOURCES, gate_name, logits_name


@dataclass
class EarlyExitOutput(ModelOutput):
    """Logits ``[B, C]`` per exit in ``exits``, of ``final`` in ``logits``, go/stop logits ``[B, 1]`` in ``gates``."""

    logits: Tensor | None = None
    exits: dict[str, Tensor] | None = None
    gates: dict[str, Tensor] | None = None


class EarlyExitConfig:
    """The fields of exits, mixed into the configuration of each trunk.

    ``exits``: names in any order, ``final`` implied. ``heads``: per exit, the fields of
    :class:`~ee_export.model.exits.HeadSpec` that differ from the default. ``encoding``: fields of
    :class:`~ee_export.package.encoding.Encoding` of a stock checkpoint. ``BEFORE_ENCODER``: the exits that the trunk
    can have before its encoder. ``HAS_CLS``: true if the first row of a hidden state represents the page.
    """

    BEFORE_ENCODER: ClassVar[tuple[str, ...]]
    HAS_CLS: ClassVar[bool] = True
    exits: list[str] | tuple[str, ...] | None
    heads: dict[str, Any] | None
    encoding: dict[str, Any] | None
    num_hidden_layers: int
    hidden_size: int
    max_position_embeddings: int
    max_text_tokens: int
    pad_token_id: int | None

    @property
    def longest_text(self) -> int:
        """Number of text tokens that the trunk has positions for.

        LayoutLMv3 and RoBERTa count them after ``pad_token_id``.
        """
        return self.max_position_embeddings - (self.pad_token_id or 0) - 1

    @property
    def longest_proof(self) -> int:
        """Tokens of the longest text in the proof of equality: those of a page, and 512 if there are positions."""
        return min(self.longest_text, max(self.max_text_tokens, 512))

    def exit_names(self) -> tuple[str, ...]:
        """Exits in the order of evaluation, ``final`` last.

        Raises:
            BadRequest: the trunk cannot have one of the exits.
        """
        return order_exits(self.exits or (), self.num_hidden_layers, self.BEFORE_ENCODER)

    def word_bands(self) -> tuple[int, ...]:
        """The bands by which the words of a page are ordered, see :class:`~ee_export.package.encoding.Encoding`."""
        if self.encoding is not None and "bands" in self.encoding:
            return tuple(self.encoding["bands"])
        return tuple(band_of(name) for name in self.exit_names() if name.startswith("text."))

    def keep_bands(self) -> None:
        """Fix the order of words before exits are added or dropped, because the trunk was trained with it."""
        self.encoding = {**(self.encoding or {}), "bands": list(self.word_bands())}

    def head_specs(self) -> dict[str, HeadSpec]:
        """Head of every exit but ``final``."""
        return head_specs(self.exit_names(), self.heads, has_cls=self.HAS_CLS)

    def width_of(self, exit_name: str) -> int:
        """Width H of the hidden state at an exit."""
        return self.hidden_size

    def depth(self, exit_name: str) -> int:
        """Number of layers before an exit: k for ``encoder.k``, all for ``final``, else 0."""
        if exit_name == "final":
            return self.num_hidden_layers
        return int(exit_name.removeprefix("encoder.")) if exit_name.startswith("encoder.") else 0


class EarlyExitModel(PreTrainedModel):
    """A trunk with a head at every exit, mixed into the ``PreTrainedModel`` of each kind of trunk.

    Such a class has a stock ``classifier``, and states its forward pass as :meth:`parts`. ``exits.*`` hold the weights
    of the heads. ``INPUTS``: names of the inputs that it reads, of :data:`ee_export.package.encoding.INPUTS`. ``BEFORE_LAYERS``: modules of the
    trunk that run for every exit behind a layer, and for no exit before the encoder. ``AFTER_LAYERS``: modules of the trunk that
    run for ``final`` alone.
    """

    BEFORE_LAYERS: ClassVar[tuple[str, ...]] = ("encoder",)
    AFTER_LAYERS: ClassVar[tuple[str, ...]] = ("layernorm", "pooler")
    INPUTS: ClassVar[tuple[str, ...]]
    config_class: ClassVar[Any]
    classifier: nn.Module

    @classmethod
    def reads(cls, source: str) -> bool:
        """Return True if the model reads a page's ``image``, or its ``text``, as ``source`` names it."""
        return source in cls.sources().values()

    @classmethod
    def sources(cls) -> dict[str, str]:
        """The part of a page that each input is made from, ``image`` or ``text``."""
        return {name: SOURCES[name] for name in cls.INPUTS}

    @classmethod
    def depth_of(cls, parameter: str) -> int | None:
        """Number of layers before the one that has a trunk parameter, ``None`` if no layer has it."""
        layer = re.search(r"\.(?:layers?|stages)\.(\d+)\.", parameter)
        return int(layer[1]) if layer else None

    @classmethod
    def is_on_path(cls, exit_name: str, parameter: str) -> bool:
        """Return True if a parameter of the trunk is used on the path to an exit. All of them are on the path to ``final``."""
        prefix, _, name = parameter.partition(".")
        if prefix != cls.base_model_prefix:
            return False
        if exit_name == "final":
            return True
        in_encoder = exit_name.startswith("encoder.")
        depth = cls.depth_of(parameter)
        if depth is not None:
            return in_encoder and depth < int(exit_name.removeprefix("encoder."))
        module = name.partition(".")[0]
        return module not in cls.AFTER_LAYERS and (in_encoder or module not in cls.BEFORE_LAYERS)

    def add_heads(self, image_size: int) -> None:
        """Make the head of every exit."""
        config = self.config
        specs = config.head_specs()
        widths = {name: self.feature_width(name) for name in config.exit_names()}
        for name, spec in specs.items():
            if spec.by_final and widths[name] != widths["final"]:
                raise BadRequest(
                    f"head of exit '{name}': its answer is the trunk's classifier, which reads {widths['final']} features, and this "
                    f'exit has {widths[name]}; set kind = "ramp", or answer = "own"'
                )
        shared = {widths[name]: name for name, spec in specs.items() if spec.shared}
        if len(shared) > 1:
            raise BadRequest(
                f"exits {' and '.join(shared.values())} share a gate, and their features are {' and '.join(map(str, shared))} wide; "
                "set shared = false"
            )
        self.exits = nn.ModuleDict(
            {
                _key(name): _make_head(config.num_labels, widths[name], spec, image_size)
                for name, spec in specs.items()
                if spec.kind != "final"
            }
        )
        self.shared_gate: nn.Module = nn.Linear(next(iter(shared)), 1) if shared else nn.Identity()

    def keep_exits(self, exits: Sequence[str]) -> None:
        """Drop the heads of all other exits, because each evaluated exit costs some time.

        Raises:
            BadRequest: the model lacks one of the exits. Lists its exits.
        """
        for name in exits:
            require_known(name, self.config.exit_names(), "exit of this checkpoint")
        self.config.keep_bands()
        self.config.exits = [name for name in self.config.exit_names()[:-1] if name in exits]
        self.config.heads = {name: head for name, head in (self.config.heads or {}).items() if name in exits}
        for name in list(self.exits):
            if name not in map(_key, exits):
                del self.exits[name]

    def classify(self, features: Tensor) -> Tensor:
        """Class logits ``[B, C]`` of the trunk's classifier, for features ``[B, F]`` of :meth:`pool` at ``final``."""
        logits: Tensor = self.classifier(features)
        return logits

    def answer(self, exit_name: str, features: Tensor) -> tuple[Tensor, ...]:
        """Evaluate an exit's head: class logits ``[B, C]`` and, if it has a gate, the go/stop logit ``[B, 1]``.

        Args:
            exit_name: an exit of this model.
            features: pooled hidden states ``[B, F]``, or ``pixel_values [B, 3, S, S]`` if its head reads pixels. For
                ``final`` and a head that uses the trunk's classifier, they are pooled as for that classifier.
        """
        spec = None if exit_name == "final" else self.config.head_specs()[exit_name]
        if spec is None or spec.kind == "final":
            return (self.classify(features),)
        head = self.exits[_key(exit_name)]
        if not isinstance(head, Gate):
            return (head(features),)
        logits = self.classify(features) if head.ramp is None else head.ramp(features)
        return logits, (self.shared_gate if head.gate is None else head.gate)(features.detach())

    @property
    def final_feature(self) -> str:
        """The feature of the trunk's classifier: the first row (``cls``), the ``mean``, or another one (``own``)."""
        return "cls"

    def final_features(self, hidden: Tensor) -> Tensor:
        """Features ``[B, F]`` of ``hidden [B, L, H]`` for the trunk's classifier, if ``final_feature`` is ``own``."""
        raise NotImplementedError

    def feature_width(self, exit_name: str) -> int:
        """Width F of the features that the head of an exit reads."""
        width: int = self.config.width_of(exit_name)
        return width

    @staticmethod
    def mean(rows: Tensor, mask: Tensor | None = None) -> Tensor:
        """The average ``[B, H]`` of hidden states ``[B, L, H]`` over the rows with nonzero ``mask [B, L]``."""
        return rows.mean(1) if mask is None else masked_mean(rows, mask)

    def feature(self, exit_name: str) -> str:
        """The feature of an exit's head: one of :data:`~ee_export.model.exits.FEATURES`, or :attr:`final_feature`."""
        if exit_name == "final":
            return self.final_feature
        spec: HeadSpec = self.config.head_specs()[exit_name]
        return "own" if spec.by_final and self.final_feature == "own" else spec.reads

    def pool(self, exit_name: str, hidden: Tensor, mask: Tensor | None = None) -> Tensor:
        """Features ``[B, F]`` of ``hidden [B, L, H]`` for the head of an exit."""
        feature = self.feature(exit_name)
        if feature == "own":
            return self.final_features(hidden)
        return first_row(hidden) if feature == "cls" else self.mean(hidden, mask)

    def parts(self, *, answer_first: bool) -> list[Part]:
        """The full model as parts, in the order of evaluation.

        ``answer_first``: true to split a layer with an exit that reads ``[CLS]`` into that row and the whole layer.
        False to let the exit read the row of the whole layer, as in training, which needs the whole layer anyway.
        """
        raise NotImplementedError

    def features(self, **inputs: Tensor) -> dict[str, Tensor]:
        """Features for every exit's head, from the hidden states of the *unmodified* transformers forward pass."""
        raise NotImplementedError

    def forward(self, only: Sequence[str] | None = None, **inputs: Tensor) -> EarlyExitOutput:
        """Compute logits of all exits, or of those in ``only``, without any part that they do not need.

        Args:
            only: exits to compute, default all.
            inputs: tensors named as in ``INPUTS``. Others are ignored.
        """
        exits = [name for name in self.config.exit_names() if only is None or name in only]
        parts = self.parts(answer_first=False)
        needed = find_parts_needed_for([logits_name(name) for name in exits], parts)
        state = dict(inputs)
        for part in parts:
            if part in needed:
                state.update(part.apply(state))
        return EarlyExitOutput(
            logits=state.get(logits_name("final")),
            exits={name: state[logits_name(name)] for name in exits},
            gates={name: state[gate_name(name)] for name in exits if gate_name(name) in state},
        )

    @torch.no_grad()
    def reference_logits(self, **inputs: Tensor) -> dict[str, Tensor]:
        """Logits of every exit, and of its gate as ``<exit>.gate``, by the *unmodified* transformers forward pass.

        Proofs of equality use it. It runs no part, and takes hidden states from transformers' own eager model.
        """
        logits: dict[str, Tensor] = {}
        for name, rows in self.features(**inputs).items():
            logits |= zip((name, gate_name(name)), self.answer(name, rows), strict=False)
        return logits

    def encoder_parts(
        self,
        layers: Iterable[Any],
        answer: Callable[..., Tensor],
        whole: Callable[..., Tensor],
        *,
        beside: tuple[str, ...] = (),
        mask: str | None = None,
        answer_first: bool,
    ) -> list[Part]:
        """Layers in order, from ``hidden.0`` to ``hidden.n``, with the exits among them and ``final`` at the end.

        Heads that read a mean, including ``final``, follow their whole layer.

        Args:
            layers: the stock layers, or other objects that ``answer`` and ``whole`` accept.
            answer: function from a layer, ``hidden [B, L, H]`` and the tensors ``beside`` to the next first row ``[B,
                H]``.
            whole: function from the same arguments to the next ``hidden``.
            beside: names of the tensors that every layer reads besides ``hidden``.
            mask: name of the padding mask ``[B, L]``, ``None`` without padding.
            answer_first: see :meth:`parts`.
        """
        parts: list[Part] = []
        for number, layer in enumerate(layers, 1):
            inputs = (f"hidden.{number - 1}", *beside)
            parts += self.layer_parts(
                number,
                trunk_part(answer, layer, inputs, (f"first.{number}",)),
                trunk_part(whole, layer, inputs, (f"hidden.{number}",)),
                mask=mask,
                answer_first=answer_first,
            )
        return parts

    def layer_parts(
        self, number: int, answer: Part, whole: Part, *, mask: str | None = None, answer_first: bool
    ) -> list[Part]:
        """One layer and its exits, with ``final`` after the last layer.

        Args:
            number: of the layer, from 1.
            answer: makes ``first.<number>``, the first row ``[B, H]`` after the layer.
            whole: makes ``hidden.<number>``, and any state of the trunk's own.
            mask: see :meth:`encoder_parts`.
            answer_first: see :meth:`parts`.
        """
        specs = self.config.head_specs()
        after, first = f"hidden.{number}", f"first.{number}"
        exits = [name for name in (f"encoder.{number}",) if name in specs]
        exits += ["final"] if number == self.config.num_hidden_layers else []
        by_row = [name for name in exits if self.feature(name) == "cls"]
        parts = [answer, whole] if by_row and answer_first else [whole]
        for name in exits:
            if name in by_row:
                inputs = (first,) if answer_first else (after,)
                parts.append(self.head_part(name, inputs, identity if answer_first else first_row))
            else:
                rows = (after,) if mask is None else (after, mask)
                parts.append(self.head_part(name, rows, partial(self.pool, name)))
        return parts

    def vision_parts(self, embeddings: Part) -> list[Part]:
        """The part that embeds ``pixel_values``, and the vision exit, which is first if its head reads pixels."""
        if "vision" not in self.config.head_specs():
            return [embeddings]
        if self.feature("vision") == "pixels":
            return [self.head_part("vision", ("pixel_values",), identity), embeddings]
        return [embeddings, self.head_part("vision", embeddings.outputs, partial(self.pool, "vision"))]

    def head_part(self, name: str, inputs: tuple[str, ...], read: Callable[..., Tensor]) -> Part:
        """The head of an exit on the features that ``read`` computes from its inputs."""
        gated = name != "final" and self.config.head_specs()[name].gated
        outputs = (logits_name(name), gate_name(name)) if gated else (logits_name(name),)
        return Part(inputs, outputs, lambda *tensors: self.answer(name, read(*tensors)))


def trunk_part(function: Callable[..., Any], module: Any, inputs: tuple[str, ...], outputs: tuple[str, ...]) -> Part:
    """A part that calls ``function`` with a module of the trunk and the named tensors."""

    def run(*tensors: Tensor) -> tuple[Tensor, ...]:
        result = function(module, *tensors)
        return result if isinstance(result, tuple) else (result,)

    return Part(inputs, outputs, run)


def first_row(rows: Tensor) -> Tensor:
    """The ``[CLS]`` row ``[B, H]`` of hidden states ``[B, L, H]``."""
    return rows[:, 0]


def identity(rows: Tensor) -> Tensor:
    """Return the input unchanged."""
    return rows


def _make_head(num_labels: int, width: int, spec: HeadSpec, image_size: int) -> nn.Module:
    if spec.reads == "pixels":
        return PixelRamp(image_size, num_labels, spec)
    return (Gate if spec.gated else Ramp)(width, num_labels, spec)


def _key(exit_name: str) -> str:
    return exit_name.replace(".", "_")
