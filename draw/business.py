"""Layouts of the set `alike`: four business papers that only words tell apart, two that only the layout tells apart."""

from __future__ import annotations

from draw import business_text as say
from draw.documents import Layouts
from draw.marks import logo, signature, wear
from draw.page import Align, Sheet, Style, wrap
from draw.source import Source

_GROUPS: tuple[tuple[str, ...], ...] = (
    ("Article", "Description", "Qty", "Weight"),
    ("Item", "Goods", "Pieces", "Mass"),
)
_PRICED = (
    ("Pos", "Article", "Description", "Qty", "Price", "Amount"),
    ("No.", "Item", "Goods", "Pieces", "Each", "Sum"),
)


def invoice(source: Source, hard: bool) -> Sheet:
    """An invoice."""
    return _paper(source, hard, "invoice")


def credit_note(source: Source, hard: bool) -> Sheet:
    """A credit note."""
    return _paper(source, hard, "credit_note")


def reminder(source: Source, hard: bool) -> Sheet:
    """A reminder."""
    return _paper(source, hard, "reminder")


def quotation(source: Source, hard: bool) -> Sheet:
    """A quotation."""
    return _paper(source, hard, "quotation")


def delivery_note(source: Source, hard: bool) -> Sheet:
    """Goods dispatched: the table above, addresses and signatures below."""
    return _dispatch(source, hard, goods_first=True)


def packing_list(source: Source, hard: bool) -> Sheet:
    """Goods dispatched: addresses above, the table below in two columns."""
    return _dispatch(source, hard, goods_first=False)


ALIKE: Layouts = {
    "credit_note": (credit_note, 0.5),
    "delivery_note": (delivery_note, 0.5),
    "invoice": (invoice, 0.5),
    "packing_list": (packing_list, 0.5),
    "quotation": (quotation, 0.5),
    "reminder": (reminder, 0.5),
}


def stationery(source: Source) -> tuple[Sheet, Style, float, float]:
    """An empty sheet of business paper, the type that it is written in, and its left and right margin."""
    sheet = Sheet(source.between(0.72, 0.78), source, squeeze=source.between(0.84, 0.96))
    body = Style(source.between(18.5, 22), bold=source.pick((0.0, 0.2)), serif=source.chance(0.4))
    if source.chance(0.15):
        body = body.but(fixed=True, size=body.size * 0.82)
    return sheet, body, sheet.width * source.between(0.06, 0.1), sheet.width * source.between(0.9, 0.94)


def letterhead(sheet: Sheet, source: Source, body: Style, left: float, right: float, side: Align) -> float:
    """A made-up company's name, emblem and address; returns the y below them."""
    name, mark = source.company(), source.between(70, 110) if source.chance(0.6) else 0.0
    big = body.but(size=body.size * source.between(1.4, 1.9), bold=0.8)
    x = {"left": left, "center": (left + right) / 2, "right": right}[side]
    y = source.between(60, 90)
    if mark:
        edge = {"left": left, "center": (left + right - mark) / 2, "right": right - mark}[side]
        logo(sheet, source, edge, y, mark)
        if side == "center":
            y += mark + 8
        else:
            x += (mark + 20) if side == "left" else -(mark + 20)
    line = y + big.size
    sheet.text(x, line, name, big, side)
    domain = "".join(letter for letter in name.lower() if letter.isalpha())[:12]
    phone = f"Phone ({source.digits(3)}) {source.digits(3)}-{source.digits(4)}"
    for text in (", ".join(source.address()), f"{phone} office@{domain}.example"):
        line += body.size * 1.35
        sheet.text(x, line, text, body.but(size=body.size * 0.9), side)
    y = max(line, y + mark) + body.size
    if source.chance(0.5):
        sheet.rule(left, y, right, y, width=source.whole(1, 4))
    return y + body.size * 1.8


def _paper(source: Source, hard: bool, label: str) -> Sheet:
    sheet, body, left, right = stationery(source)
    text = say.wording(source, label, crowded=source.chance(0.5))
    heading = body.but(size=body.size * source.between(1.2, 2.2), bold=source.pick((0.4, 0.8)))
    place = source.pick(("corner", "above", "above", "below", "below", "details"))
    y = _open(sheet, source, body, heading, left, right, text.title, place)
    if text.corner:
        sheet.text(right, 44, text.corner, body.but(bold=source.pick((0.0, 0.6))), "right")
    swapped = source.chance(0.3)
    aside = left + (right - left) * source.between(0.56, 0.62)
    x, other = (aside, left) if swapped else (left, aside)
    end = _address(sheet, source, body, x, y, source.pick(("", "To:", "Customer")))
    line = y
    if text.title and place == "details":
        sheet.text(other, line + heading.size * 0.4, text.title, heading)
        line += heading.size * 1.7
    y = max(end, _details(sheet, source, body, other, line, right if not swapped else aside - 30)) + body.size
    if text.title and place == "below":
        y = _draw_head(sheet, source, heading, left, right, y, text.title)
    strong = body.but(bold=0.7)
    if text.subject:
        sheet.text(left, y, text.subject, strong if source.chance(0.7) else body)
        y += body.size * 2
    if text.references:
        y = _references(sheet, source, body, left, right, y, text.references)
    for sentence in text.sentences:
        y = sheet.paragraph(left, y, right - left, sentence, strong if source.chance(0.15) else body, 1.3)
    floor = _foot(sheet, source, body, left, right, text.terms)
    y = _draw_prices(sheet, source, body, left, right, y + body.size * 1.2, floor) + body.size
    if source.chance(0.7) and y < floor - body.size * 4:
        sheet.text(left, y, source.pick(("Sincerely yours,", "Kind regards,", "With best regards,")), body)
        if source.chance(0.6):
            signature(sheet, source, left + 10, y + body.size * 2.2, source.between(140, 240), 40)
        sheet.text(left, y + body.size * 4, source.person(), body)
    if hard:
        wear(sheet, source)
    return sheet


def _dispatch(source: Source, hard: bool, goods_first: bool) -> Sheet:
    """Two parcels of goods, addresses and signatures; words come in the same order wherever the parts stand."""
    sheet, body, left, right = stationery(source)
    heading = body.but(size=body.size * source.between(1.2, 1.7), bold=source.pick((0.4, 0.8)))
    y = _open(sheet, source, body, heading, left, right, "GOODS DISPATCHED", source.pick(("corner", "above")))
    floor = _foot(sheet, source, body, left, right, say.terms(source)) - body.size * 5
    middle = (left + right) / 2
    counts = (source.whole(3, 7), source.whole(3, 7))
    room = floor - y - body.size * 12  # for both tables one below the other, whether or not they stand so
    step = min(body.size * source.between(1.4, 1.6), room / (sum(counts) + 6))
    heads = source.pick(_GROUPS)
    spans, tops = [(left, middle - 15), (middle + 15, right)], [y, y]
    if goods_first:
        spans, tops = [(left, right)] * 2, [y, y + (counts[0] + 3) * step]
        y = tops[1] + (counts[1] + 3) * step
    sheet.next_block()
    third = (right - left) / 3
    ends = [
        _address(sheet, source, body, left + i * 1.1 * third, y, f"{verb} to")
        for i, verb in enumerate(("Ship", "Sold"))
    ]
    ends.append(_details(sheet, source, body, left + 2.2 * third, y, right))
    y = max(ends) + body.size * 1.5
    if not goods_first:
        tops = [y, y]
        y += (max(counts) + 3) * step
    for number, (count, top, span) in enumerate(zip(counts, tops, spans, strict=True), 1):
        sheet.next_block()
        sheet.text(span[0], top, f"Parcel {number} of 2", body.but(bold=0.6))
        cells = [
            (source.digits(5), source.pick(say.GOODS), str(source.whole(1, 90)), f"{source.between(0.2, 40):.1f}")
            for _ in range(count)
        ]
        _grid(sheet, body, span, top + step * 1.2, step, [heads, *cells], (0.0, 0.2, 0.78, 1.0), rules=True)
    sheet.next_block()
    y = min(y + source.between(0, 3) * body.size, floor)
    for i, name in enumerate(("Packed by", "Checked by", "Received by")):
        x = left + i * third
        sheet.box(x, y, x + third - 20, y + body.size * 4)
        sheet.text(x + 8, y + body.size * 1.2, name, body)
        if source.chance(0.6):
            signature(sheet, source, x + 20, y + body.size * 3, third * 0.5, 40)
    if hard:
        wear(sheet, source)
    return sheet


def _open(
    sheet: Sheet, source: Source, body: Style, heading: Style, left: float, right: float, title: str, place: str
) -> float:
    """The letterhead, and the title where it stands beside it or right below."""
    side: Align = source.pick(("left", "left", "center", "right"))
    y = letterhead(sheet, source, body, left, right, side)
    if not title or place not in ("corner", "above"):
        return y
    if place == "corner" and side != "center":
        free: Align = "right" if side == "left" else "left"
        sheet.text(right if side == "left" else left, source.between(95, 125), title, heading, free)
        return y
    return _draw_head(sheet, source, heading, left, right, y, title)


def _draw_head(sheet: Sheet, source: Source, heading: Style, left: float, right: float, y: float, title: str) -> float:
    side: Align = source.pick(("left", "center", "right"))
    x = {"left": left, "center": (left + right) / 2, "right": right}[side]
    sheet.text(x, y + heading.size * 0.5, title, heading, side)
    return y + heading.size * 2


def _address(sheet: Sheet, source: Source, body: Style, x: float, y: float, name: str) -> float:
    lines = [name] if name else []
    lines += [source.company(), *([source.person()] if source.chance(0.4) else []), *source.address()]
    for number, line in enumerate(lines):
        sheet.text(x, y, line, body.but(bold=0.6) if name and number == 0 else body)
        y += body.size * 1.35
    return y


def _details(sheet: Sheet, source: Source, body: Style, x: float, y: float, right: float) -> float:
    """Numbers and dates of the page, none with the name of the paper."""
    pairs = [
        ("Number", source.digits(6)), ("Date", source.date(2012, 2024, "mm/dd/yyyy")),
        ("Customer", source.digits(5)), ("Order", source.digits(6)), ("Contact", str(source.fake.last_name())),
        ("Department", source.pick(("Sales", "Accounts", "Service"))),
    ]  # fmt: skip
    step, boxed = body.size * 1.4, source.chance(0.3)
    top = y - step
    for name, value in pairs[: source.whole(3, 6)]:
        sheet.text(x + 10, y, name, body)
        sheet.text(x + (right - x) * 0.5, y, value, body)
        y += step
    if boxed:
        sheet.box(x, top, right, y - step * 0.6)
    return y


def _references(
    sheet: Sheet,
    source: Source,
    body: Style,
    left: float,
    right: float,
    y: float,
    references: tuple[tuple[str, str], ...],
) -> float:
    """Numbers of earlier papers, side by side or one below the other."""
    strong = body.but(bold=source.pick((0.0, 0.6)))
    if source.chance(0.5):
        width = (right - left) / len(references)
        for i, (name, value) in enumerate(references):
            sheet.text(left + i * width, y, name, strong)
            sheet.text(left + i * width, y + body.size * 1.3, value, body)
        return y + body.size * 3.6
    for name, value in references:
        sheet.text(left, y, name, strong)
        sheet.text(left + body.size * 11, y, value, body)
        y += body.size * 1.3
    return y + body.size


def _draw_prices(sheet: Sheet, source: Source, body: Style, left: float, right: float, y: float, floor: float) -> float:
    """The table of goods with their prices, the totals, and how to pay beside them."""
    step = body.size * source.between(1.4, 1.7)
    fits = int((floor - y) / step) - 6  # the heads stand above the rows, the totals below
    rows: list[tuple[str, ...]] = [source.pick(_PRICED)]
    total = 0.0
    for number in range(1, max(2, min(source.whole(2, 12), fits)) + 1):
        count, price = source.whole(1, 40), round(source.between(1, 300), 2)
        total += count * price
        goods = source.pick(say.GOODS)
        rows.append((str(number), source.digits(5), goods, str(count), f"{price:,.2f}", f"{count * price:,.2f}"))
    stops = (0.0, 0.07, 0.18, 0.66, 0.82, 1.0)
    y = _grid(sheet, body, (left, right), y, step, rows, stops, rules=source.chance(0.7)) + body.size * 0.6
    tax = source.pick((5, 6, 7, 8, 10))
    freight = round(source.between(4, 60), 2)
    sums = [("Net", total), ("Freight", freight), (f"Tax {tax} %", (total + freight) * tax / 100)]
    sums.append(("Total", sum(amount for _, amount in sums)))
    line = y
    for name, amount in sums:
        style = body.but(bold=0.7) if name == "Total" else body
        sheet.text(left + (right - left) * 0.7, line, name, style)
        sheet.text(right - 6, line, f"${amount:,.2f}", style, "right")
        line += step
    bank = f"{source.fake.city()} Savings Bank"
    for text in (
        bank,
        f"Account {source.digits(9)}",
        f"Routing {source.digits(9)}",
        f"Terms {source.pick((7, 14, 30))} days net",
    ):
        sheet.text(left, y, text, body)
        y += step
    return max(y, line)


def _grid(
    sheet: Sheet, body: Style, span: tuple[float, float], y: float, step: float,
    rows: list[tuple[str, ...]], stops: tuple[float, ...], rules: bool,
) -> float:  # fmt: skip
    """Rows of cells, the first one the heads; the last two or three columns are numbers and end at their stop."""
    left, right = span
    texts = 2 if len(stops) == 4 else 3
    for number, row in enumerate(rows):
        for column, (cell, stop) in enumerate(zip(row, stops, strict=True)):
            align: Align = "left" if column < texts else "right"
            x = left + 6 + (right - left - 12) * stop
            sheet.text(x, y, cell, body.but(bold=0.6) if number == 0 else body, align)
        if rules or number == 0:
            sheet.rule(left, y + step * 0.3, right, y + step * 0.3, width=2 if number == 0 else 1)
        y += step
    return y


def _foot(sheet: Sheet, source: Source, body: Style, left: float, right: float, terms: str) -> float:
    """The company's register line and its terms at the foot of the page; returns the y above them."""
    small = body.but(size=body.size * 0.8)
    y = sheet.height - source.between(40, 60)
    line = f"Registered in {source.fake.city()} No. {source.digits(6)} Managing director {source.person()}"
    sheet.text(sheet.width / 2, y, line, small, "center")
    lines = len(wrap(terms, small, right - left)) if terms else 0
    y -= small.size * (1.25 * lines + 1.2)
    if terms:
        sheet.paragraph(left, y + small.size * 0.6, right - left, terms, small)
    if source.chance(0.5):
        sheet.rule(left, y - small.size, right, y - small.size, width=1)
    return y - small.size * 1.5
