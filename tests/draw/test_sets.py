"""The sets of drawn pages: what tells their classes apart and what does not, and labels that are wrong on purpose."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from statistics import mean

import pytest
from click.testing import CliRunner
from PIL import Image

from draw import LABELS, SETS, DrawnPage, draw_folder, draw_page
from draw.__main__ import main
from draw.business import credit_note, delivery_note, invoice, packing_list, quotation, reminder
from draw.business_text import NOUNS, Wording, wording
from draw.source import Source
from ee_export.data.dataset import read_dataset
from ee_export.data.page import read_page
from ee_export.errors import BadRequest

PAPERS = tuple(NOUNS)
NEW = (*SETS["alike"], *SETS["unknown"])


@pytest.fixture(scope="module")
def pages() -> dict[str, list[DrawnPage]]:
    """Twelve easy pages of each class of `alike`."""
    return {label: [draw_page(label, seed) for seed in range(12)] for label in SETS["alike"]}


def texts(label: str, count: int = 150) -> list[Wording]:
    return [wording(Source(label, seed, False), label, crowded=True) for seed in range(count)]


def named(page: DrawnPage) -> list[str]:
    words = " ".join(page.words).lower()
    return [noun for noun in NOUNS.values() if noun.split()[0] in words]


def test_a_label_belongs_to_one_set_and_the_first_set_is_the_seven_classes() -> None:
    labels = [label for members in SETS.values() for label in members]
    assert len(labels) == len(set(labels))
    assert SETS["documents"] == LABELS
    assert len(LABELS) == 7


@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("label", NEW)
def test_every_new_label_draws_a_repeatable_page_with_a_box_for_each_word(label: str, hard: bool) -> None:
    page, again = (draw_page(label, seed=3, hard=hard) for _ in range(2))
    assert (page.label, page.hard, page.image.mode, max(page.image.size)) == (label, hard, "L", 800)
    assert len(page.words) == len(page.boxes)
    assert (len(page.words) > 10) == (label != "blank")
    assert all(word and not any(letter.isspace() for letter in word) for word in page.words)
    assert all(0 <= x0 <= x1 <= 1000 and 0 <= y0 <= y1 <= 1000 for x0, y0, x1, y1 in page.boxes)
    assert page.image.tobytes() == again.image.tobytes()
    assert (page.words, page.boxes) == (again.words, again.boxes)


def test_a_paper_names_one_other_kind_at_most_or_all_four_equally_often_in_the_same_letters(
    pages: dict[str, list[DrawnPage]],
) -> None:
    assert {len(named(page)) for label in PAPERS for page in pages[label]} == {1, 2, 4}
    for label in PAPERS:
        assert all(NOUNS[label] in named(page) for page in pages[label])
        for page in pages[label]:
            if len(named(page)) < 4:
                continue
            count = Counter(page.words)
            for letters in (str.upper, str.capitalize, str.lower):
                counts = {count[letters(noun.split()[0])] for noun in NOUNS.values()}
                assert len(counts) == 1, (label, letters)
            assert 1 <= sum(count[letters("reminder")] for letters in (str.upper, str.capitalize, str.lower)) <= 3


def test_what_a_paper_is_stands_in_its_title_or_in_one_sentence() -> None:
    for label in PAPERS:
        for text in texts(label, 40):
            nouns = [noun for noun in NOUNS.values() if noun in text.title.lower()]
            if not text.title:
                nouns = [
                    noun for noun in NOUNS.values() for sentence in text.sentences if f"{noun} " in sentence.lower()
                ]
            assert NOUNS[label] in nouns
            assert text.title == "" or nouns == [NOUNS[label]]


def test_the_same_draws_give_the_same_bag_of_words_whatever_the_crowded_paper() -> None:
    for seed in range(6):
        sheets = [layout(Source("any", seed, False), False) for layout in (invoice, credit_note, reminder, quotation)]
        crowded = all(noun.split()[0] in " ".join(sheets[0].words).lower() for noun in NOUNS.values())
        assert all(Counter(sheet.words) == Counter(sheets[0].words) for sheet in sheets) == crowded
        assert all((sheet.width, sheet.height) == (sheets[0].width, sheets[0].height) for sheet in sheets)


def test_the_four_papers_are_laid_out_alike(pages: dict[str, list[DrawnPage]]) -> None:
    untitled = [mean(not text.title for text in texts(label)) for label in PAPERS]
    assert all(0.2 < share < 0.4 for share in untitled)
    words = [mean(len(page.words) for page in pages[label]) for label in PAPERS]
    assert max(words) < 1.2 * min(words)


def test_dispatched_goods_have_the_same_text_in_two_layouts(pages: dict[str, list[DrawnPage]]) -> None:
    for seed in range(6):
        below, above = (layout(Source("any", seed, False), False) for layout in (delivery_note, packing_list))
        assert [below.words[i] for i in below.reading_order()] == [above.words[i] for i in above.reading_order()]
    for label in ("delivery_note", "packing_list"):
        for page in pages[label]:
            words = zip(page.words, page.boxes, strict=True)
            ship, first, second = [box for word, box in words if word in ("Ship", "Parcel")]
            assert (first[1] < ship[1]) == (label == "delivery_note")
            assert (abs(first[1] - second[1]) < 4) == (label == "packing_list")


def test_an_upside_down_page_is_read_as_nonsense_from_its_foot() -> None:
    page = draw_page("upside_down", seed=5)
    assert not {"the", "of", "and", "The", "Total"} & set(page.words)
    assert page.boxes[0][1] < page.boxes[-1][1]


def test_a_blank_page_has_no_words_and_is_read_from_its_folder(tmp_path: Path) -> None:
    assert draw_folder(tmp_path, pages_per_class=1, seed=0, collection="unknown") == 5
    assert {path.name for path in tmp_path.iterdir()} == set(SETS["unknown"])
    page = read_page(tmp_path / "blank" / "drawn-0-00000.jpg")
    assert (page.words, page.boxes) == ([], [])
    assert page.decode().mode == "L"
    assert json.loads((tmp_path / "blank" / "drawn-0-00000.json").read_bytes()) == {"words": [], "boxes": []}


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_label_noise_moves_that_share_of_pages_and_records_exactly_those(tmp_path: Path) -> None:
    for name, noise in (("clean", 0.0), ("noisy", 0.25), ("again", 0.25)):
        draw_folder(tmp_path / name, pages_per_class=4, seed=2, collection="unknown", label_noise=noise)
    clean, noisy = contents(tmp_path / "clean"), contents(tmp_path / "noisy")
    assert contents(tmp_path / "again") == noisy
    assert "label_noise.json" not in clean
    moved = json.loads(noisy.pop("label_noise.json"))
    assert len(moved) == 5
    assert Counter(moved.values()) == dict.fromkeys(SETS["unknown"], 1)
    assert set(moved) == {path for path in noisy if path.endswith(".jpg") and path not in clean}
    for path, label in moved.items():
        assert not path.startswith(f"{label}/")
        assert noisy[path] in [
            data for other, data in clean.items() if other.startswith(f"{label}/") and other not in noisy
        ]
    assert len(read_dataset(tmp_path / "noisy")) == 20


def test_an_unknown_set_or_an_impossible_share_of_wrong_labels_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match=r"unknown set 'alik'.*documents, alike, unknown; did you mean alike"):
        draw_folder(tmp_path, pages_per_class=1, seed=0, collection="alik")
    for noise in (-0.1, 1.0, float("nan")):
        with pytest.raises(BadRequest, match="label noise"):
            draw_folder(tmp_path, pages_per_class=1, seed=0, label_noise=noise)
    assert not list(tmp_path.iterdir())


def test_the_command_draws_a_set_and_answers_an_unknown_one_in_one_line(tmp_path: Path) -> None:
    drawn = CliRunner().invoke(
        main, [str(tmp_path / "out"), "--set", "unknown", "--pages", "1", "--label-noise", "0.4", "--long-side", "1700"]
    )
    assert (drawn.exit_code, drawn.output.split()[0]) == (0, "5")
    assert len(json.loads((tmp_path / "out" / "label_noise.json").read_bytes())) == 2
    for path in (tmp_path / "out").glob("*/*.jpg"):
        with Image.open(path) as image:
            assert max(image.size) == 1700
    for arguments, answer in (
        (["--set", "unknwon"], "did you mean unknown"),
        (["--long-side", "9"], "long_side 9: expected 100 to 4000 pixels"),
    ):
        refused = CliRunner().invoke(main, [str(tmp_path), *arguments])
        assert refused.exit_code == 2
        assert answer in refused.output
