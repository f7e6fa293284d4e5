"""``python -m attacks PACKAGE``: run the families of attacks, or replay one attack."""

import shutil
import sys
import tempfile
import traceback
from pathlib import Path

import click

from attacks import report
from attacks.families import FAMILIES
from attacks.family import Attack, Family, Ground
from attacks.outcome import Outcome
from attacks.run import choose, run_attacks
from attacks.worker import run_attack


@click.command()
@click.argument("package", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--family", "families", multiple=True, help="Only this family, repeatable; default all.")
@click.option("--scale", default=0.02, show_default=True, help="Share of each family's attacks.")
@click.option("--whole", is_flag=True, help="All attacks: the same as --scale 1.")
@click.option("--seed", default=0, show_default=True, help="Of everything that is drawn.")
@click.option("--workers", default=2, show_default=True, help="Processes at a time.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write counts and findings to this file.")
@click.option("--replay", help="FAMILY:INDEX: carry out one attack in this process, and show its traceback.")
def main(
    package: Path,
    families: tuple[str, ...],
    scale: float,
    whole: bool,
    seed: int,
    workers: int,
    json_file: Path | None,
    replay: str | None,
) -> None:
    """Attack PACKAGE and the toolkit around it. Exit status 1 if one attack breaks the contract."""
    for name in families:
        if name not in FAMILIES:
            raise click.BadParameter(f"unknown family '{name}': expected one of {', '.join(FAMILIES)}")
    if replay is not None:
        name, _, index = replay.rpartition(":")
        if name not in FAMILIES or not index.isdigit():
            raise click.BadParameter(f"--replay {replay}: expected FAMILY:INDEX, with one of {', '.join(FAMILIES)}")
        sys.exit(_replay(package, FAMILIES[name], int(index), seed))
    attacks = choose(package, families or tuple(FAMILIES), 1.0 if whole else scale, seed)
    done = 0

    def count(outcome: Outcome) -> None:
        nonlocal done
        done += 1
        if done % 500 == 0 or done == len(attacks):
            click.echo(f"{done} of {len(attacks)} attacks", err=True)

    outcomes = run_attacks(package, attacks, seed, workers, count)
    if json_file is not None:
        report.write_json(json_file, outcomes, package, seed)
    click.echo(report.table(outcomes))
    if text := report.findings(outcomes, package, seed):
        click.echo("\n" + text)
    sys.exit(1 if any(outcome.failed for outcome in outcomes) else 0)


def _replay(package: Path, family: Family, index: int, seed: int) -> int:
    scratch = Path(tempfile.mkdtemp(prefix="ee-attack-"))
    ground = Ground(package.resolve(), scratch, seed)
    try:
        attack = family.attack(ground, index)

        def act() -> None:
            try:
                attack.act()
            except BaseException:
                traceback.print_exc()
                raise

        shown = Family(family.name, family.count, lambda ground, index: Attack(attack.what, act))
        outcome = run_attack(ground, shown, index)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    click.echo(f"{outcome.kind}: {outcome.what}; {outcome.seconds:.2f} s, {outcome.peak_mb:.0f} MB more")
    if outcome.kind != "answered":
        click.echo(f"{outcome.error}: {outcome.message}\nat {outcome.frame or '(no frame of ee_export)'}")
    return int(outcome.failed)


if __name__ == "__main__":
    main()
