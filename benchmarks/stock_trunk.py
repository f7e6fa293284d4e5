"""Write the trunk of an early-exit checkpoint as a stock checkpoint without exits and classifier.

    python benchmarks/stock_trunk.py samples/documents.checkpoint build/trunk

The models of a study start from it. An encoder that is trained from scratch on a few pages per class learns nothing.
Users start from a pretrained one.
"""

from pathlib import Path

import click
from safetensors.torch import save_file
from transformers import LayoutLMv3Config

from ee_export.model import checkpoint
from ee_export.package.atomic import staged_folder


@click.command()
@click.argument("source", type=click.Path(path_type=Path, exists=True))
@click.argument("out", type=click.Path(path_type=Path))
def main(source: Path, out: Path) -> None:
    """Write the LayoutLMv3 trunk of SOURCE, with its tokenizer, to OUT."""
    model, tokenizer = checkpoint.load(source)
    settings = model.config.to_dict()
    own = {"exits", "heads", "model_type", "architectures", "id2label", "label2id"}
    with staged_folder(out, overwrite=True) as staging:
        LayoutLMv3Config(**{name: value for name, value in settings.items() if name not in own}).save_pretrained(
            staging
        )
        weights = {name: value for name, value in model.state_dict().items() if name.startswith("layoutlmv3.")}
        save_file({name: value.contiguous() for name, value in weights.items()}, staging / "model.safetensors")
        tokenizer.save(str(staging / "tokenizer.json"))
    click.echo(f"{len(weights)} weights in {out}")


if __name__ == "__main__":
    main()
