"""A user's model, given as parts. The command and Python build it, and refuse an unsuitable one in one line."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ee_export.builder.build import weights_digest
from ee_export.data.encode import Encoder
from ee_export.data.page import read_page
from ee_export.errors import BadModel, BadRequest
from ee_export.export import Input, Part, PartedModel, build_package, encode_folder, image_encoding, text_encoding
from ee_export.model.checkpoint import train_tokenizer
from ee_export.model.factory import call_factory
from ee_export.package.store import open_package
from ee_export.runtime.load import load_package
from tests.conftest import LABELS, run_command

MODULE = """
import torch
from torch import nn
from ee_export.export import Part, PartedModel, image_encoding

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.rest = nn.Sequential(nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU(), nn.Dropout(0.5))
        self.heads = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * width, 7)) for width in (8, 16)
        )

def make_model():
    print("made here")
    torch.manual_seed(0)
    net = Net().eval()
    return PartedModel(
        parts=[
            Part(("pixel_values",), ("near",), net.stem),
            Part(("near",), ("early.logits",), net.heads[0]),
            Part(("near",), ("far",), net.rest),
            Part(("far",), ("late.logits",), net.heads[1]),
        ],
        exits=("early", "late"),
        labels=LABELS,
        module=net,
        encoding=image_encoding(32, mode="L"),
    )
"""


def test_the_command_builds_a_package_of_a_function_in_the_current_folder(tmp_path: Path, pages_folder: Path) -> None:
    (tmp_path / "my_module.py").write_text(f"LABELS = {LABELS}\n{MODULE}")
    done = run_command("build", "my_module:make_model", pages_folder, "--out", "my.ee", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "made here" in done.stderr, "what the user's code prints is no part of the result"
    shown = json.loads(done.stdout)
    assert shown["exits"] == ["early", "late"]
    assert shown["model"] == {"type": "Net"}

    model = call_factory(f"{tmp_path / 'my_module.py'}:make_model")
    net: Any = model.module
    assert shown["origin"]["checkpoint"] == weights_digest(net)
    assert model.encoding is not None
    chain = load_package(open_package(tmp_path / "my.ee"))
    images = [path for path in sorted(pages_folder.rglob("*")) if path.suffix in (".png", ".jpg")]
    for path in images[:3]:
        answer = chain.predict(read_page(path))
        pixels = Encoder(model.encoding, train_tokenizer(iter([]), 0)).image(chain.encoder.open(read_page(path))[0])
        with torch.no_grad():
            logits = net.heads[1](net.rest(net.stem(torch.from_numpy(pixels["pixel_values"]))))
        assert answer.label == LABELS[int(logits.argmax())]


class Net(nn.Module):
    """Two layers on an image of 8 x 8 pixels, each with a head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.more = nn.Linear(192, 16), nn.Linear(16, 16)
        self.early, self.late = nn.Linear(16, 7), nn.Linear(16, 7)

    def first(self, pixel_values: Tensor) -> Tensor:
        return torch.relu(self.stem(pixel_values.flatten(1)))

    def forward(self, pixel_values: Tensor) -> dict[str, Tensor]:
        near = self.first(pixel_values)
        return {"early": self.early(near), "late": self.late(self.more(near))}


def fields_of(net: Net) -> dict[str, Any]:
    """The arguments of ``build_package`` for a model that is right."""
    return {
        "parts": [
            Part(("pixel_values",), ("near",), net.first),
            Part(("near",), ("early.logits",), net.early),
            Part(("near",), ("far",), net.more),
            Part(("far",), ("late.logits",), net.late),
        ],
        "exits": ("early", "late"),
        "labels": LABELS,
        "module": net,
        "encoding": image_encoding(8),
        "reference": net,
    }


def with_part(index: int, **changes: Any) -> Callable[[Net, dict[str, Any]], None]:
    """Changes one part."""

    def change(net: Net, fields: dict[str, Any]) -> None:
        fields["parts"][index] = replace(fields["parts"][index], **changes)

    return change


def with_field(**changes: Any) -> Callable[[Net, dict[str, Any]], None]:
    """Changes arguments."""
    return lambda net, fields: fields.update(changes)


def with_net(change: Callable[[Net], Any]) -> Callable[[Net, dict[str, Any]], None]:
    """Changes the module."""
    return lambda net, fields: change(net) and None


def reversed_parts(net: Net, fields: dict[str, Any]) -> None:
    fields["parts"] = fields["parts"][::-1]


def foreign_weights(net: Net, fields: dict[str, Any]) -> None:
    fields["parts"][2] = replace(fields["parts"][2], run=nn.Linear(16, 16).eval())


def one_part_of_two_answers(net: Net, fields: dict[str, Any]) -> None:
    both = Part(("near",), ("early.logits", "late.logits"), lambda near: (net.early(near), net.late(net.more(near))))
    fields["parts"][1:] = [both]


def logits_read_later(net: Net, fields: dict[str, Any]) -> None:
    ahead = Part(("far", "early.logits"), ("late.logits",), lambda far, early: net.late(far) + early)
    fields["parts"][3] = ahead


def of_the_batch(near: Tensor) -> Tensor:
    return near - near.mean(0)


def drawn_by_chance(near: Tensor) -> Tensor:
    return nn.functional.dropout(near, 0.5, training=True)


def of_two_pages(near: Tensor) -> Tensor:
    return near.view(2, 16)


def to_float64(near: Tensor) -> Tensor:
    return near.double()


def to_columns(near: Tensor) -> Tensor:
    return near.T


def to_a_branch(near: Tensor) -> Tensor:
    return near + 1 if near.sum() > 0 else near - 1


def control_flow(net: Net, fields: dict[str, Any]) -> None:
    fields["reference"] = None
    fields["parts"][2] = replace(fields["parts"][2], run=to_a_branch)


def infinite(far: Tensor) -> Tensor:
    return far[:, :7] / 0


def failing(near: Tensor) -> Tensor:
    raise ValueError("no such\nluck")


REFUSED: dict[str, tuple[Callable[[Net, dict[str, Any]], None], str]] = {
    "no parts": (with_field(parts=[]), r"^parts: found \[\], expected a list of Part; split"),
    "another thing than a part": (with_field(parts=["x"]), r"^parts\[0\]: found 'x', expected a Part"),
    "a name for a tuple": (
        with_part(0, inputs="pixel_values"),
        r"^parts\[0\]\.inputs: found 'pixel_values', expected a tuple",
    ),
    "nothing to run": (with_part(0, run=None), r"^parts\[0\]: run is None"),
    "a tensor twice": (with_part(2, outputs=("near",)), r"^tensor 'near': made twice, by"),
    "a tensor nobody makes": (with_part(2, inputs=("nowhere",)), r"^tensor 'nowhere': read by .* made by no part"),
    "a wrong order": (reversed_parts, r"^tensor 'far': read by .* before .* makes it; put the parts in the order"),
    "an input as a name": (with_part(2, outputs=("pixel_values",)), r"pixel_values': made by .* and an input"),
    "an exit that no part reaches": (
        with_field(exits=("erly", "late")),
        r"^exits\[0\]: no part makes 'erly\.logits'; parts make the logits of early, late; rename",
    ),
    "no exits": (with_field(exits=()), r"^exits: found \(\), expected"),
    "an exit twice": (with_field(exits=("early", "early", "late")), r"^exits: .*expected each once"),
    "a name of a path": (with_field(exits=("../early", "late")), r"^exits\[0\]: found '\.\./early'"),
    "two answers of one part": (
        one_part_of_two_answers,
        r"^exit 'late': its logits come from .* give each head a part",
    ),
    "an answer that is read later": (
        logits_read_later,
        r"^tensor 'early\.logits': the answer of exit 'early' does not pass",
    ),
    "other classes": (
        with_field(labels=(*LABELS, "other")),
        r"^tensor 'early\.logits': float32 \[B, 7\], expected float32 \[B, 8\]",
    ),
    "a label twice": (with_field(labels=("a",) * 7), r"^labels: .*"),
    "labels of numbers": (with_field(labels=7), r"^labels: found 7, expected names"),
    "no module": (with_field(module=None), r"^module: found None, expected the torch module"),
    "training mode": (with_net(lambda net: net.more.train()), r"^module\.more: is in training mode.*call eval\(\)"),
    "half precision": (with_net(lambda net: net.half()), r"^module: weight stem\.weight is float16, expected float32"),
    "another device": (with_net(lambda net: net.to("meta")), r"^module: weight stem\.weight is on meta, expected cpu"),
    "weights elsewhere": (
        foreign_weights,
        r"^module: does not hold a weight of shape \[16, 16\].*attribute of the module",
    ),
    "no encoding": (with_field(encoding=None), r"^inputs: found None, and there is no encoding; expected"),
    "an array beside pages": (
        with_field(inputs={"pixel_values": Input("array", "float32", ("B", 3))}),
        r"^inputs\.pixel_values: found Input.*the encoder makes pixel_values",
    ),
    "a part that fails": (
        with_part(2, run=failing),
        r"^part \(near -> far\): fails for near \[2, 16\] \(ValueError: no such luck\)",
    ),
    "a size that does not vary": (with_part(2, run=of_two_pages), r"^part \(near -> far\): fails for near \[3, 16\]"),
    "too many results": (
        with_part(2, run=lambda near: (near, near)),
        r"^part \(near -> far\): returns 2 tensors, expected 1",
    ),
    "no tensor": (with_part(2, run=lambda near: None), r"^part \(near -> far\): returns nothing, expected 1 tensors"),
    "pages elsewhere": (
        with_part(2, run=to_columns),
        r"^tensor 'far': is \[16, 2\] for 2 pages, expected the pages as axis 0",
    ),
    "no such type": (
        with_part(2, run=to_float64),
        r"^tensor 'far': is float64, expected one of float32, .*; convert it in its part",
    ),
    "not finite": (with_part(3, run=infinite), r"^tensor 'late\.logits': is not finite for random inputs"),
    "chance": (with_part(2, run=drawn_by_chance), r"^exit 'late': its logits differ by .* if the parts run again"),
    "other pages": (with_part(2, run=of_the_batch), r"^exit 'late': the logits of a page differ by .* alone"),
    "other parts than the reference": (
        with_part(2, run=lambda near: near),
        r"^exit 'late': the logits of its parts differ from the reference's by",
    ),
    "a reference of other exits": (
        with_field(reference=lambda pixel_values: {}),
        r"^reference: exit 'early': found nothing",
    ),
    "a reference that fails": (with_field(reference=lambda: {}), r"^reference: fails \(TypeError.*takes pixel_values"),
    "control flow": (
        control_flow,
        r"^exit 'late': torch cannot export its parts \(near -> far\).*without control flow",
    ),
}


@pytest.mark.parametrize("case", list(REFUSED))
def test_an_unsuitable_model_is_refused_in_one_line_and_writes_nothing(
    case: str, tmp_path: Path, pages_folder: Path
) -> None:
    change, message = REFUSED[case]
    net = Net().eval()
    fields = fields_of(net)
    change(net, fields)
    with pytest.raises(BadModel, match=message) as caught:
        build_package(**fields, data=pages_folder, out=tmp_path / "my.ee")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


class Prefixed(nn.Module):
    """A text model with all that may pass between segments: one more row than tokens, integers, booleans and inputs themselves."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.embedding, self.prefix = nn.Embedding(rows, 8), nn.Parameter(torch.randn(1, 1, 8))
        self.early, self.gate, self.late = nn.Linear(8, 7), nn.Linear(8, 1), nn.Linear(8, 7)

    def start(self, input_ids: Tensor, attention_mask: Tensor) -> list[Tensor]:
        pages = len(input_ids)
        rows = torch.cat([self.prefix.expand(pages, -1, -1), self.embedding(input_ids)], 1)
        first = torch.ones((pages, 1), dtype=torch.bool)
        return [rows.transpose(1, 2), torch.cat([first, attention_mask > 0], 1), attention_mask, attention_mask.sum(1)]

    def mean(self, turned: Tensor, mask: Tensor) -> Tensor:
        rows = turned.transpose(1, 2) * mask.unsqueeze(2)
        return rows.sum(1) / mask.sum(1, keepdim=True)

    def end(self, turned: Tensor, mask: Tensor, given: Tensor, tokens: Tensor, scores: Tensor) -> Tensor:
        return self.late(self.mean(turned, mask)) + scores + (given.sum(1) - tokens).unsqueeze(1).float()


def test_state_of_any_kind_passes_between_segments(tmp_path: Path, pages_folder: Path) -> None:
    tokenizer = train_tokenizer(iter([["total", "invoice", "form"]] * 3), 300)
    net = Prefixed(tokenizer.get_vocab_size()).eval()

    def twice(mean: Tensor) -> tuple[Tensor, Tensor]:
        return net.early(mean), net.early(mean)

    package = build_package(
        parts=[
            Part(("input_ids", "attention_mask"), ("turned", "mask", "given", "tokens"), net.start),  # type: ignore[arg-type]
            Part(("turned", "mask"), ("mean",), net.mean),
            Part(("mean",), ("early.logits", "scores"), twice),
            Part(("mean",), ("early.gate",), net.gate),
            Part(("turned", "mask", "given", "tokens", "scores"), ("late.logits",), net.end),
        ],
        exits=("early", "late"),
        labels=LABELS,
        module=net,
        encoding=text_encoding(tokenizer, 40),
        tokenizer=tokenizer,
        data=pages_folder,
        out=tmp_path / "odd.ee",
    )
    state = {tensor.name: tensor for tensor in package.target("cpu-fp32").segments[1].inputs}
    assert {name: (tensor.dtype, tensor.shape) for name, tensor in state.items()} == {
        "turned": ("float32", ("B", 8, "L")),
        "mask": ("bool", ("B", "L")),
        "given": ("int64", ("B", "T")),
        "tokens": ("int64", ("B",)),
        "scores": ("float32", ("B", 7)),
    }
    assert package.manifest.answers() == ("early", "early.gate", "late")
    assert max(package.target("cpu-fp32").equality.values()) < 1e-5
    chain = load_package(package)
    pages = [read_page(path) for path in sorted(pages_folder.rglob("*.json"))[:0] or _images(pages_folder)[:5]]
    together = chain.predict_batch(pages)
    assert [answer.label for answer in together] == [chain.predict(page).label for page in pages]


def _images(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.rglob("*")) if path.is_file() and path.suffix != ".json"]


def test_a_model_that_does_not_read_its_padding_is_refused(tmp_path: Path, pages_folder: Path) -> None:
    tokenizer = train_tokenizer(iter([["total"]]), 300)
    net = Prefixed(tokenizer.get_vocab_size()).eval()
    with pytest.raises(BadModel, match=r"^exit 'late': the logits of a page differ by .*; read attention_mask"):
        build_package(
            parts=[
                Part(("input_ids",), ("rows",), net.embedding),
                Part(("rows",), ("late.logits",), lambda rows: net.late(rows.mean(1))),
            ],
            exits=("late",),
            labels=LABELS,
            module=net,
            encoding=text_encoding(tokenizer, 40),
            tokenizer=tokenizer,
            data=pages_folder,
            out=tmp_path / "my.ee",
        )


FACTORIES = {
    "no function": ("def make_modle(): pass", "make_model", r"has no function make_model; did you mean make_modle\?"),
    "an import that fails": (
        "import nothing_here",
        "make_model",
        r"raises ModuleNotFoundError at mine\.py, line 1: No module",
    ),
    "an exception": (
        "def make_model():\n    raise OSError('weights.pt\\nis missing')",
        "make_model",
        r"raises OSError at mine\.py, line 2: weights\.pt is missing; mend it",
    ),
    "an end": ("import sys\nsys.exit(3)", "make_model", r"raises SystemExit at mine\.py, line 2: 3"),
    "another result": ("def make_model(): return 7", "make_model", r"returns int, expected a PartedModel; return"),
    "a syntax error": ("def make_model(:", "make_model", r"raises SyntaxError"),
    "no name": ("", "", r"expected module:function"),
}


@pytest.mark.parametrize("case", list(FACTORIES))
def test_a_function_that_makes_no_model_is_refused_in_one_line(case: str, tmp_path: Path) -> None:
    code, name, message = FACTORIES[case]
    (tmp_path / "mine.py").write_text(code)
    with pytest.raises(BadModel, match=message) as caught:
        call_factory(f"{tmp_path / 'mine.py'}:{name}")
    assert "\n" not in str(caught.value)


def test_a_missing_module_or_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadModel, match=r"^not_there: no such module in .* none installed; name a module"):
        call_factory("not_there:make_model")
    with pytest.raises(BadModel, match=r"^not_there\.py: no such file"):
        call_factory("not_there.py:make_model")


def test_exits_that_are_named_make_a_smaller_package(tmp_path: Path) -> None:
    from ee_export.builder.build import build_own

    model = PartedModel(**fields_of(Net().eval()))
    with pytest.raises(
        BadRequest, match=r"unknown exit of this model 'erly': expected one of early, late; did you mean"
    ):
        build_own(model, tmp_path, tmp_path / "my.ee", exits=["erly"], progress=lambda *_: None)


def test_arrays_for_training_are_those_of_the_package(pages_folder: Path) -> None:
    encoding = image_encoding(24, (0.4, 0.5, 0.6), (0.2, 0.3, 0.4))
    arrays = encode_folder(pages_folder, encoding)
    assert arrays["pixel_values"].shape == (len(arrays["label"]), 3, 24, 24)
    assert set(arrays["label"]) == set(LABELS)
    encoder = Encoder(encoding, train_tokenizer(iter([]), 0))
    first = next(path for path in _images(pages_folder) if path.parent.name == arrays["label"][0])
    image, _ = encoder.open(read_page(first))
    assert np.array_equal(encoder.image(image)["pixel_values"][0], arrays["pixel_values"][0])
