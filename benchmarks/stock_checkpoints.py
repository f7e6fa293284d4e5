"""Stock checkpoints of every family that can have exits, with random weights, written by transformers alone.

Each has labels that are not sorted, a short text, and an image processor with statistics, filter and crop of its own.
Vocabularies are trained on the words of the pages.
"""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    BeitImageProcessorPil,
    BitImageProcessorPil,
    ConvNextImageProcessorPil,
    DeiTImageProcessorPil,
    LayoutLMv3ImageProcessorPil,
    PreTrainedModel,
    SiglipImageProcessorPil,
    ViTImageProcessorPil,
)

from ee_export.builder.against import SourcePipeline
from ee_export.data.dataset import Dataset
from ee_export.model.checkpoint import silence_transformers
from ee_export.package.atomic import staged_folder
from tests.model.source_tokenizers import KINDS, Vocabularies

LONGEST = 60
"""Tokens of a text, by the tokenizer's ``model_max_length``."""
BATCH = 16
ACCURACY = "fine_tuned.json"
"""The file of a fine-tuned checkpoint that states its accuracy."""
NEAREST, LANCZOS, BILINEAR, BICUBIC, BOX, HAMMING = range(6)
SIZES = {"hidden_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 192}
TEXT = {**SIZES, "max_position_embeddings": 130}
IMAGE = {**SIZES, "image_size": 112, "patch_size": 16}
ODD = {"image_mean": [0.61, 0.57, 0.52], "image_std": [0.31, 0.27, 0.22]}
"""Statistics of no known processor."""


@dataclass(frozen=True)
class Stock:
    """The parts of a family's checkpoint: configuration, kind of tokenizer, image processor and heads."""

    config: dict[str, Any]
    tokenizer: str | None = None
    tokenizer_fields: dict[str, Any] = field(default_factory=dict)
    processor: Any = None


STOCK = {
    "layoutlmv3": Stock(
        {**TEXT, "input_size": 112, "patch_size": 16, "coordinate_size": 16, "shape_size": 16},
        "layoutlmv3",
        processor=LayoutLMv3ImageProcessorPil(
            apply_ocr=False, size={"height": 112, "width": 112}, resample=LANCZOS, **ODD
        ),
    ),
    "bert": Stock(TEXT, "bert-cased"),
    "roberta": Stock(TEXT, "roberta-prefix"),
    "beit": Stock(
        {**IMAGE, "use_relative_position_bias": True},
        processor=BeitImageProcessorPil(
            size={"height": 128, "width": 120}, crop_size={"height": 112, "width": 112}, do_center_crop=True,
            resample=BICUBIC, image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225],
        ),
    ),
    "vit": Stock(
        IMAGE, processor=ViTImageProcessorPil(size={"height": 112, "width": 112}, resample=BICUBIC, **ODD)
    ),
    "deit": Stock(
        {**IMAGE, "image_size": 96, "architectures": ["DeiTForImageClassification"]},
        processor=DeiTImageProcessorPil(
            size={"height": 120, "width": 104}, crop_size={"height": 96, "width": 96}, resample=LANCZOS, **ODD
        ),
    ),
    "dinov2": Stock(
        {**IMAGE, "image_size": 126, "patch_size": 14, "mlp_ratio": 2},
        processor=BitImageProcessorPil(
            size={"shortest_edge": 140}, crop_size={"height": 126, "width": 126}, resample=BICUBIC, **ODD
        ),
    ),
    "siglip": Stock(
        {"vision_config": IMAGE},
        processor=SiglipImageProcessorPil(
            size={"height": 112, "width": 112}, resample=HAMMING, rescale_factor=1 / 127.5,
            image_mean=[1.0, 1.1, 0.9], image_std=[0.9, 1.0, 1.2],
        ),
    ),
    "swin": Stock(
        {"image_size": 112, "embed_dim": 48, "depths": [2, 2, 2], "num_heads": [2, 4, 8], "window_size": 7},
        processor=ViTImageProcessorPil(size={"height": 112, "width": 112}, resample=BOX, **ODD),
    ),
    "convnext": Stock(
        {"image_size": 112, "hidden_sizes": [32, 64, 96, 128], "depths": [1, 1, 2, 1]},
        processor=ConvNextImageProcessorPil(size={"shortest_edge": 112}, crop_pct=0.8, resample=BICUBIC, **ODD),
    ),
    "distilbert": Stock(
        {"dim": 96, "n_layers": 4, "n_heads": 4, "hidden_dim": 192, "max_position_embeddings": 130}, "distilbert"
    ),
    "electra": Stock({**TEXT, "embedding_size": 48}, "electra", {"truncation_side": "left"}),
    "xlm-roberta": Stock(TEXT, "xlm-roberta"),
    "camembert": Stock(TEXT, "camembert"),
    "deberta-v2": Stock(
        {
            **TEXT, "relative_attention": True, "position_buckets": 16, "pos_att_type": ["p2c", "c2p"],
            "norm_rel_ebd": "layer_norm", "share_att_key": True, "position_biased_input": False,
        },
        "deberta-v3",
    ),
    "modernbert": Stock({**TEXT, "local_attention": 16, "global_attn_every_n_layers": 2}, "modernbert"),
    "lilt": Stock(TEXT, "lilt-roberta"),
    "layoutlm": Stock(TEXT, "layoutlm"),
}  # fmt: skip


def write_stock(
    family: str,
    folder: Path,
    pages: Dataset,
    labels: Sequence[str],
    *,
    wide: bool = True,
    seed: int = 0,
    stock: Stock | None = None,
) -> None:
    """Write a stock checkpoint with random weights.

    Args:
        family: a name in :data:`STOCK`.
        folder: the checkpoint folder, which is replaced if it exists.
        pages: their words make the vocabulary, and some of them decide scale and bias of the classifier.
        labels: labels in the order of the logits.
        wide: draw weights so large that wrong arithmetic shows, and that pages get different labels. Otherwise
            transformers draws weights that can be trained.
        seed: seed of the weights.
        stock: parts of the checkpoint, default those of the family in :data:`STOCK`.
    """
    stock = stock or STOCK[family]
    ids: dict[str, Any] = {}
    with staged_folder(folder, overwrite=True) as staging, silence_transformers():
        if stock.tokenizer is not None:
            lines = tuple(" ".join(pages.page(index).words or ()) for index in range(len(pages)))
            tokenizer = KINDS[stock.tokenizer][1](Vocabularies(lines, 3000, 3000, 2000))
            tokenizer.model_max_length = LONGEST
            for name, value in stock.tokenizer_fields.items():
                setattr(tokenizer, name, value)
            tokenizer.save_pretrained(staging)
            ends = {"bos": tokenizer.cls_token_id, "eos": tokenizer.sep_token_id, "pad": tokenizer.pad_token_id}
            ids = {"vocab_size": len(tokenizer), **{f"{name}_token_id": value for name, value in ends.items()}}
        if stock.processor is not None:
            stock.processor.save_pretrained(staging)
        torch.manual_seed(seed)
        names = {"id2label": dict(enumerate(labels)), "label2id": {label: index for index, label in enumerate(labels)}}
        config = AutoConfig.for_model(family, **{**ids, **names, **stock.config})
        auto = AutoModelForSequenceClassification if stock.tokenizer else AutoModelForImageClassification
        auto.from_config(config).save_pretrained(staging)
        if wide:
            pipeline = SourcePipeline(staging)
            widen(pipeline.model)
            spread_answers(pipeline, [pages.page(index) for index in range(0, len(pages), max(1, len(pages) // 60))])
            pipeline.model.save_pretrained(staging)


@torch.no_grad()
def widen(model: PreTrainedModel) -> None:
    """Draw weights so large that wrong arithmetic shows in the logits, and biases that are not zero."""
    for name, weight in model.named_parameters():
        if weight.ndim > 1:
            weight.normal_(std=0.15)
        elif name.endswith("bias"):
            weight.normal_(std=0.05)


@torch.no_grad()
def spread_answers(pipeline: SourcePipeline, pages: Sequence[Any]) -> None:
    """Scale and shift the last layer, so that logits have mean 0 and standard deviation 2 and labels differ."""
    logits = torch.stack([torch.from_numpy(pipeline.logits(pipeline.encode(page, LONGEST))[0]) for page in pages])
    layers = [layer for layer in pipeline.model.modules() if isinstance(layer, nn.Linear)]
    last = [layer for layer in layers if layer.out_features == logits.shape[1]][-1]
    scale = 2 / logits.std(0)
    last.weight.mul_(scale[:, None])
    last.bias.sub_(logits.mean(0)).mul_(scale)


def fine_tune(
    stock: Path, out: Path, train: Dataset, val: Dataset, epochs: int, learning_rate: float, seed: int = 0
) -> float:
    """Train all weights of a stock checkpoint in a plain loop, with transformers' own classes alone.

    Args:
        stock: the checkpoint to start from.
        out: the fine-tuned checkpoint, with the processor and the tokenizer of ``stock``.
        train: pages that train. Labels are matched by their names.
        val: pages on which the accuracy is measured. They choose nothing.
        epochs: epochs over ``train``, in batches of 16.
        learning_rate: learning rate of AdamW. It falls linearly to 0 after a tenth of the steps.
        seed: seed of the order of pages and of dropout.

    Returns:
        Accuracy on ``val``, 0–1.
    """
    pipeline = SourcePipeline(stock)
    model, labels = pipeline.model, labels_of(stock)
    pages, targets = (
        encode_all(pipeline, train),
        torch.tensor([labels.index(train.labels[index]) for index in train.targets]),
    )
    optimizer = torch.optim.AdamW(model.parameters(), learning_rate, weight_decay=0.05)
    steps = epochs * (len(train) // BATCH)
    warm = max(1, steps // 10)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warm, (steps - step) / max(1, steps - warm))
    )
    torch.manual_seed(seed)
    model.train()
    for epoch in range(epochs):
        order = torch.randperm(len(train))
        for index in range(len(train) // BATCH):
            rows = order[index * BATCH : (index + 1) * BATCH]
            logits = model(**collate([pages[row] for row in rows], getattr(model.config, "pad_token_id", None))).logits
            loss = F.cross_entropy(logits, targets[rows], label_smoothing=0.05)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
        print(f"{out.name}: epoch {epoch + 1} of {epochs}, loss {loss.item():.3f}", flush=True)
    model.eval()
    answers = [labels[pipeline.logits(page).argmax()] for page in encode_all(pipeline, val)]
    accuracy = sum(answer == val.labels[index] for answer, index in zip(answers, val.targets, strict=True)) / len(val)
    with staged_folder(out, overwrite=True) as staging, silence_transformers():
        shutil.copytree(stock, staging, dirs_exist_ok=True)
        model.save_pretrained(staging)
        (staging / ACCURACY).write_text(json.dumps({"val_accuracy": accuracy}))
    return accuracy


def encode_all(pipeline: SourcePipeline, pages: Dataset) -> list[dict[str, Any]]:
    """Encode every page with transformers."""
    return [dict(pipeline.encode(pages.page(index), LONGEST)) for index in range(len(pages))]


def collate(pages: Sequence[dict[str, Any]], pad: int | None) -> dict[str, torch.Tensor]:
    """Make one batch of pages, with texts padded to the longest."""
    batch = {}
    for name in pages[0]:
        rows = [torch.from_numpy(page[name][0]) for page in pages]
        fill = pad if name == "input_ids" else 0
        batch[name] = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=fill or 0)
    return batch


def link_pages(folder: Path, splits: Sequence[Path], each: int | None = None) -> Path:
    """Make class folders with links to the pages of several splits, at most ``each`` per class and split."""
    shutil.rmtree(folder, ignore_errors=True)
    for split in splits:
        for label in sorted(path for path in split.iterdir() if path.is_dir()):
            (folder / label.name).mkdir(parents=True, exist_ok=True)
            for image in sorted(label.glob("*.jpg"))[:each]:
                for path in (image, image.with_suffix(".json")):
                    (folder / label.name / f"{split.name}-{path.name}").symlink_to(path.resolve())
    return folder


def labels_of(folder: Path) -> list[str]:
    """Read the labels of a checkpoint in the order of the logits."""
    names = json.loads((folder / "config.json").read_text())["id2label"]
    return [names[str(index)] for index in range(len(names))]
