"""`python -m draw OUT --set documents --pages 200`: write a folder of drawn pages."""

from __future__ import annotations

from pathlib import Path

import click

from draw import SETS, draw_folder
from ee_export.errors import EeError


@click.command()
@click.argument("out", type=click.Path(file_okay=False, path_type=Path))
@click.option("--pages", default=200, show_default=True, help="Pages of each class.")
@click.option("--seed", default=0, show_default=True, help="Other seeds give other pages.")
@click.option("--hard-share", default=0.5, show_default=True, help="Share of hard pages, 0 to 1.")
@click.option("--set", "collection", default="documents", show_default=True, help=f"One of {', '.join(SETS)}.")
@click.option(
    "--label-noise", default=0.0, show_default=True, help="Share of pages in a wrong folder, listed in a file."
)
@click.option("--long-side", default=800, show_default=True, help="Pixels of each image; 3508 is A4 at 300 dpi.")
def main(
    out: Path, pages: int, seed: int, hard_share: float, collection: str, label_noise: float, long_side: int
) -> None:
    """Draw synthetic pages of every class of a set into OUT/<class>/."""
    try:
        count = draw_folder(out, pages, seed, hard_share, collection, label_noise, long_side)
    except EeError as error:
        click.echo(f"draw: {error}", err=True)
        raise SystemExit(2) from None
    click.echo(f"{count} pages in {out}")


if __name__ == "__main__":
    main()
