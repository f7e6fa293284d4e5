"""Layouts of the three FARA classes: one letterhead, one grid of numbered items, three wordings."""

from __future__ import annotations

from dataclasses import dataclass, replace

from draw import fara_text as say
from draw.marks import signature, wear
from draw.page import Sheet, Style
from draw.source import Source


@dataclass(frozen=True, slots=True)
class Item:
    """One numbered item: a label, and what stands below it."""

    label: str
    answer: tuple[str, ...] = ()
    checks: tuple[str, ...] = ()
    blanks: tuple[str, ...] = ()  # labels followed by a line to write on
    signed: bool = False
    weight: float = 1.0  # share of the height that is left


def amendment(source: Source, hard: bool) -> Sheet:
    """An amendment to a registration statement."""
    return _draw(source, hard, "amendment", _amendment_items(source), ((2, 1, 1, 1), (2, 1, 1, 1, 2)))


def dissemination_report(source: Source, hard: bool) -> Sheet:
    """A report on material that was sent out."""
    return _draw(
        source,
        hard,
        "dissemination",
        _dissemination_items(source),
        ((2, 1, 2, 3, 2, 2), (2, 1, 2, 3, 2, 2, 3)),
    )


def short_form(source: Source, hard: bool) -> Sheet:
    """A registration of one person who works for a registrant."""
    return _draw(source, hard, "short", _short_items(source), ((2, 2, 2, 1, 2, 1, 1, 1),))


_SHARED = (
    (2, 1, 2, 2, 1, 1),
    (2, 2, 2, 1, 1),
    (2, 1, 2, 3, 1),
    (2, 2, 1, 2, 1, 1),
)  # of hard pages of all three


def _amendment_items(source: Source) -> list[Item]:
    ticks = (
        "To correct a deficiency in", "Initial Statement",
        f"Supplemental Statement for {source.date(1970, 2018)}",
        "Notice within 10 days of a change, Section 2(b)", "Change in an exhibit on file",
        "Other purpose (specify)",
    )  # fmt: skip
    attached = f"Exhibit {source.pick('ABCD')}" if source.chance(0.6) else source.pick(("None", "N/A", "See attached"))
    return [
        Item("Name of Registrant", (_registrant(source),), weight=0.6),
        Item("Registration No.", (source.digits(4),)),
        Item("Purpose or purposes of this amendment:", checks=ticks, weight=1.4),
        Item("Documents that are filed with this amendment:", (attached,), weight=0.6),
        Item(
            "Explain in detail each item checked above, with reference to the item of the statement that it amends.",
            (say.narrative(source, "amendment", source.whole(1, 7)),), weight=2.4,
        ),
        Item("Date of amendment", (source.date(1970, 2019, "long"),), weight=0.6),
        Item("Name and title of the person who amends", (f"{source.person()}, {source.pick(_TITLES)}",), signed=True),
        Item("Amends the statement for the period ending", (source.date(1970, 2019, "long"),), weight=0.6),
        Item("Is an amendment of an exhibit attached?", checks=("Yes", "No"), weight=0.5),
        Item("Further changes", (say.narrative(source, "amendment", 1),), weight=0.8),
    ]  # fmt: skip


def _dissemination_items(source: Source) -> list[Item]:
    groups = (
        "Libraries", "Public officials", "Newspapers", "Press services or associations",
        "Educational institutions",
        "Civic groups", "Other (specify)",
    )  # fmt: skip
    sent = (
        f"{source.date(1978, 1996)} - {source.date(1978, 1996)}"
        if source.chance(0.4)
        else source.date(1978, 1996, "long")
    )
    means = source.pick(
        ("U.S. Mail", "Hand delivered", "First class mail", "Mail and fax", "By messenger", "Bulk mail")
    )
    states = source.pick(
        ("All states", "District of Columbia", str(source.fake.state()), "Nationwide", "See attached list")
    )
    copies = source.pick((str(source.whole(3, 9000)), "Various", "ten (10)", f"{source.whole(2, 60)} each"))
    return [
        Item("Name of registrant", (_registrant(source),), weight=0.5),
        Item("Registration No.", (source.digits(4),)),
        Item(
            "Nature of the material disseminated",
            (say.narrative(source, "dissemination", source.whole(1, 2)),),
            weight=0.7,
        ),
        Item("Title of material, if any", (say.narrative(source, "dissemination", 1),), weight=0.9),
        Item("Foreign principal on whose behalf it was transmitted", (say.principal(source),)),
        Item("Means of transmission", (means,), weight=0.6),
        Item("Dates of transmission", (sent,)),
        Item("Total copies transmitted", (copies,)),
        Item("Addresses from which the material was transmitted", tuple(source.address()), weight=1.0),
        Item("States and territories to which it was transmitted", (states,)),
        Item("Types of recipients and number in each group", blanks=groups, weight=1.9),
        Item(
            "Persons or organizations who received 100 copies or more",
            (source.pick(("None", "N/A", source.company())),),
        ),
        Item("Film, radio or television: name of station", ("N/A",), weight=0.7),
        Item("Dates broadcast or shown", (source.pick(("", source.date(1978, 1996))),)),
        Item("Estimated attendance", ("",), signed=True),
    ]


def _short_items(source: Source) -> list[Item]:
    ties = (
        "partner",
        "director",
        "employee",
        "consultant",
        "officer",
        "associate",
        "agent",
        "subcontractor",
        "other (specify)",
    )
    born = source.pick((f"{source.whole(1930, 1990)}", f"{source.date(1930, 1990)} {source.fake.city()}"))
    country = source.pick(("USA", "United States", "American", source.pick(say.COUNTRIES)))
    acquired = source.pick(("N/A", "n/a", "Not applicable", f"Naturalized {source.whole(1960, 2010)}"))
    return [
        Item("Name", (source.person(),), weight=0.6),
        Item("Registration No.", (source.digits(4),)),
        Item("Residence Address(es)", tuple(source.address()), weight=0.9),
        Item("Business Address(es)", (source.company(), *source.address())),
        Item("Year of Birth", (born, f"Nationality {country}", f"Present Citizenship {country}"), weight=1.0),
        Item("If citizenship is not by birth: when and how it was acquired", (acquired,)),
        Item("Occupation", (str(source.fake.job()),), weight=0.5),
        Item("Name of the primary registrant", (_registrant(source),), weight=0.7),
        Item("Address of the primary registrant", tuple(source.address())),
        Item("Your connection with the primary registrant:", checks=ties, weight=1.2),
        Item("Foreign principals that you will serve", (say.principal(source),), weight=0.8),
        Item("Services to each foreign principal, with their dates",
             (say.narrative(source, "short", source.whole(1, 3)),), weight=1.3),
    ]  # fmt: skip


_TITLES = ("President", "Partner", "Secretary", "Vice President", "Managing Director", "Counsel", "Treasurer")


def _registrant(source: Source) -> str:
    return source.pick(
        (source.company(), source.company() + " " + source.pick(("LLP", "LLC", "Inc.")), source.person())
    )


def _draw(source: Source, hard: bool, kind: str, items: list[Item], own: tuple[tuple[int, ...], ...]) -> Sheet:
    sheet = Sheet(source.between(0.755, 0.776), source, squeeze=source.between(0.82, 0.93))
    title, form_no, formerly = say.TITLES[kind]
    left = sheet.width * source.between(0.05, 0.11)
    right = sheet.width * source.between(0.92, 0.97)
    size = source.between(19, 22)
    print_ = Style(size, bold=source.pick((0.0, 0.2, 0.5)), serif=source.chance(0.75))
    filled = _pen(source, size, hard)
    received = source.chance(0.55 if kind != "dissemination" or hard else 0.05)
    arrival = (
        f"Received by NSD/FARA Registration Unit {source.date(2008, 2019, 'mm/dd/yyyy')} {source.clock(seconds=True)}"
    )
    y = source.between(50, 80)
    if received:
        sheet.text(sheet.width / 2, y - 12, arrival, Style(28), "center")
        y += 26
    y = _letterhead(sheet, source, left, right, y + 20, size, "" if hard and source.chance(0.7) else title)
    small = print_.but(size=source.between(14.5, 17.0))
    words = {"amendment": 340, "dissemination": 350, "short": 450}[kind] if not hard else source.whole(180, 450)
    old_amendment = kind == "amendment" and not hard and source.chance(0.25)
    if not old_amendment:
        for paragraph in say.notices(source, kind, words):
            y = (
                sheet.paragraph(left, y, right - left, paragraph, small, source.between(1.15, 1.25), "left")
                + small.size * 0.7
            )
    floor = sheet.height - source.between(100, 150)
    split = source.pick(_SHARED) if hard else source.pick(own)
    _grid(sheet, source, items, split, (left, y, right, floor), print_, filled)
    sheet.text(right, floor + 32, f"FORM {form_no}", small.but(bold=0.5), "right")
    if source.chance(0.5):
        sheet.text((left + right) / 2, floor + 32, f"Formerly {formerly}", small.but(bold=0.6), "center")
    if received:
        sheet.text(sheet.width / 2, sheet.height - 38, arrival, Style(28), "center")
    if hard:
        wear(sheet, source)
    return sheet


def _pen(source: Source, size: float, hard: bool) -> Style:
    """The pen of the answers."""
    if hard and source.chance(0.25):
        return Style(
            size * source.between(1.2, 1.6),
            bold=0.6,
            slant=source.between(0, 0.3),
            hand=True,
            ink=source.whole(0, 60),
        )
    if source.chance(0.5):
        return Style(size * 1.08, fixed=True, bold=source.pick((0.2, 0.5)), serif=source.chance(0.5))
    return Style(size * source.between(0.95, 1.1))


def _letterhead(sheet: Sheet, source: Source, left: float, right: float, y: float, size: float, title: str) -> float:
    strong = Style(size * 1.15, bold=0.7, serif=source.chance(0.6))
    middle = left + (right - left) * source.between(0.42, 0.5)
    number = f"OMB NO. 11{source.whole(5, 24):02}-000{source.whole(1, 7)}; Expires {source.date(1980, 2021, 'long')}"
    sheet.text(middle, y, number, Style(size * 0.8))
    y += size * 1.4
    sheet.text(left, y, "U.S. Department of Justice", strong)
    sheet.text(left, y + size * 1.8, "Washington, DC 20530", Style(size))
    if title:
        sheet.text(middle, y, title, strong.but(size=size * source.between(1.15, 1.4)))
        y += size * 1.5
    act = "Pursuant to the Foreign Agents Registration Act of 1938, as amended"
    bold = source.pick((0.0, 0.7))
    end = sheet.paragraph(
        middle, y, right - middle, act, Style(size * 1.15, bold=bold, slant=0.2 if bold == 0 else 0.0)
    )
    y = max(end, y + size * 1.8)
    thick = source.between(6, 16)
    sheet.box(left, y, right, y + thick, width=0, fill=0)
    if source.chance(0.6):
        sheet.rule(left, y + thick + 6, right, y + thick + 6)
    return y + thick + size * 1.8


def _grid(
    sheet: Sheet, source: Source, items: list[Item], split: tuple[int, ...],
    area: tuple[float, float, float, float], print_: Style, filled: Style,
) -> None:  # fmt: skip
    """Rows of numbered items between rules; ``split`` says how many items stand in each row."""
    left, top, right, floor = area
    rows: list[list[Item]] = []
    numbered = [replace(item, label=f"{number}. {item.label}") for number, item in enumerate(items, 1)]
    for count in split:
        rows.append(numbered[:count])
        numbered = numbered[count:]
    rows = [row for row in rows if row]
    weights = [max(item.weight for item in row) for row in rows]
    unit = min((floor - top) / sum(weights), 150)
    for row, weight in zip(rows, weights, strict=True):
        foot = top + weight * unit
        sheet.rule(left, top, right, top)
        edges = [left]
        for i in range(1, len(row)):
            edges.append(left + (right - left) * (i / len(row) + source.between(-0.05, 0.08)))
        edges.append(right)
        for i, item in enumerate(row):
            if i:
                sheet.rule(edges[i], top, edges[i], foot)
            _item(
                sheet,
                source,
                item,
                (edges[i] + (14 if i else 0), top, edges[i + 1] - 10, foot),
                print_,
                filled,
            )
        top = foot
    sheet.rule(left, top, right, top)


def _item(
    sheet: Sheet,
    source: Source,
    item: Item,
    cell: tuple[float, float, float, float],
    print_: Style,
    filled: Style,
) -> None:
    x0, y0, x1, y1 = cell
    y = y0 + print_.size * 1.25
    y = sheet.paragraph(x0, y, x1 - x0, item.label, print_, 1.15) + 4
    inner = x0 + source.between(14, 50)
    if item.checks:
        room = max(int((y1 - y) / (print_.size * 1.45)), 1)
        columns = -(-len(item.checks) // room)
        for i, label in enumerate(item.checks):
            column, line = divmod(i, room)
            x = inner + column * (x1 - inner) / columns
            sheet.check(x, y + line * print_.size * 1.45, label, print_, source.chance(0.3))
    for i, blank in enumerate(item.blanks):
        line_y = y + i * print_.size * 1.35
        if line_y < y1:
            end = sheet.text(x0, line_y, blank, print_)
            sheet.rule(end + 6, line_y + 2, x1, line_y + 2)
            if source.chance(0.3):
                sheet.text(end + 40, line_y, str(source.whole(1, 900)), filled)
    for answer in item.answer:
        if y < y1:
            y = sheet.paragraph(inner, y + 2, x1 - inner, answer, filled, 1.12, bottom=y1 - 2)
    if item.signed:
        signature(sheet, source, inner, y1 - 20, min(260, (x1 - inner) * 0.7))
