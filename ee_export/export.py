"""Build a package of an early-exit model of your own: the public names, see docs/how-to/pytorch.md.

    from ee_export.export import Part, PartedModel, image_encoding

    def make_model() -> PartedModel:
        net = MyNet().eval()
        return PartedModel(
            parts=[
                Part(("pixel_values",), ("h1",), net.stage1),
                Part(("h1",), ("early.logits",), net.head1),
                Part(("h1",), ("h2",), net.stage2),
                Part(("h2",), ("final.logits",), net.head2),
            ],
            exits=("early", "final"),
            labels=("form", "letter"),
            module=net,
            encoding=image_encoding(224),
        )

Then ``ee-export build my_module:make_model DATA --out my.ee``, or :func:`build_package`.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from torch import Tensor, nn

from ee_export.data.page import Ocr
from ee_export.model.encodings import encode_folder, hf_encoding, image_encoding, read_words, text_encoding
from ee_export.model.parts import Input, Part, PartedModel
from ee_export.package.encoding import Encoding
from ee_export.package.store import Package

__all__ = [
    "Encoding",
    "Input",
    "Part",
    "PartedModel",
    "build_package",
    "encode_folder",
    "hf_encoding",
    "image_encoding",
    "read_words",
    "text_encoding",
]


def build_package(
    *,
    parts: Sequence[Part],
    exits: Sequence[str],
    labels: Sequence[str],
    module: nn.Module,
    data: str | Path,
    out: str | Path,
    inputs: Mapping[str, Input] | None = None,
    encoding: Encoding | None = None,
    tokenizer: Tokenizer | None = None,
    reference: Callable[..., Mapping[str, Tensor]] | None = None,
    description: Mapping[str, Any] | None = None,
    golden: str | Path | None = None,
    ocr: Ocr | None = None,
    ocr_ms: float | None = None,
    seed: int = 0,
    overwrite: bool = False,
    progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
) -> Package:
    """Build a package of a model that is given as parts: cut, export, prove, calibrate, tune, verify.

    Args:
        parts: see :class:`PartedModel`, as ``exits``, ``labels``, ``module``, ``inputs``, ``encoding``, ``tokenizer``, ``reference``
            and ``description``.
        exits: names of the exits, in the order of evaluation.
        labels: names of the classes, in the order of the logits.
        module: holds the weights.
        data: held-out pages in class folders, named as the labels. They are split into parts that calibrate, tune and certify.
        out: the package folder.
        inputs: by name, if there is no encoding.
        encoding: how a page becomes arrays.
        tokenizer: of the encoding.
        reference: logits of every exit without the parts.
        description: kept in the manifest as ``model``.
        golden: pages to carry as golden inputs, default drawn ones.
        ocr: reads pages without words. Its cost is measured on a few pages.
        ocr_ms: that cost in milliseconds, if it is not to be measured.
        seed: of the split.
        overwrite: replace a package that is there.
        progress: called with the name of a stage, steps done and steps in all.

    Returns:
        The package, opened. Nothing is left of a build that fails.

    Raises:
        BadModel: the parts do not fit together, or cannot be cut or exported.
        BadData, BadPage: the pages cannot be used.
        BadRequest: ``out`` exists.
        NotEqual: the outputs of an exported graph differ from the model's.
    """
    # Here, because it imports transformers: a module with a factory need not.
    from ee_export.builder.build import build_own

    model = PartedModel(
        parts=parts,
        exits=exits,
        labels=labels,
        module=module,
        inputs=inputs,
        encoding=encoding,
        tokenizer=tokenizer,
        reference=reference,
        description=description or {},
    )
    return build_own(
        model,
        Path(data),
        Path(out),
        golden_folder=None if golden is None else Path(golden),
        ocr=ocr,
        ocr_ms=ocr_ms,
        seed=seed,
        overwrite=overwrite,
        progress=progress,
    )
