"""Layouts of ad_buy_form: contracts, orders and invoices for political spots on television stations."""

from __future__ import annotations

from draw.marks import logo, signature, wear
from draw.page import Sheet, Style
from draw.source import Source

_SHOWS = (
    "News at 6", "News at Noon", "Early Today", "Evening News", "Late Show", "Morning Show", "M-F Daytime",
    "Prime Movie",
    "Weekend Report", "Game Night", "Local News 5p", "Sunrise News", "Sports Extra", "Quiz Hour",
    "Court Room", "Drama Mon",
    "College Football", "Saturday Matinee", "Talk of the Day", "Cooking Live", "Weather First",
    "Sunday Politics",
)  # fmt: skip
_OFFICES = (
    "Mayor",
    "Governor",
    "Senate",
    "Congress",
    "President",
    "State House",
    "Sheriff",
    "Council",
    "School Board",
    "Issue",
)
_FOOT = (
    "The station does not discriminate in advertising contracts on the basis of race or ethnicity.",
    "Cancellations have to reach the station in writing two weeks before the first spot.",
    "The agency and the advertiser are both liable for the amounts on this page until they are paid.",
    "Times and programs shown here were taken from the program log of the station.",
    "Spots are sold as immediately preemptible unless a line says otherwise.",
    "Please send your payment with a copy of this page to the remittance address above.",
    "Terms net 30 days; a late charge may be added to balances that are past due.",
)


def ad_buy_form(source: Source, hard: bool) -> Sheet:
    """A broadcast contract, order or invoice, upright or landscape."""
    wide = source.chance(0.42)
    aspect = source.between(1.28, 1.35) if wide else source.between(0.765, 0.78)
    sheet = Sheet(aspect, source, squeeze=source.between(0.84, 1.0))
    size = source.between(15.5, 18.5) if wide else source.between(16, 19.5)
    body = Style(size, bold=source.pick((0.0, 0.0, 0.2)), fixed=source.chance(0.12))
    if body.fixed:
        body = body.but(size=size * 0.85)
    strong = body.but(bold=0.7)
    left, right = sheet.width * source.between(0.025, 0.05), sheet.width * source.between(0.95, 0.975)
    title = source.pick(
        (
            "CONTRACT",
            "INVOICE",
            "ORDER",
            "INVOICE",
            "Order Confirmation",
            "REP BUYLINES",
            "Broadcast Contract",
        )
    )
    printed = source.date(2018, 2020, "mm/dd/yy")
    y = source.between(40, 70)
    sheet.text(sheet.width / 2, y + 26, title, Style(source.between(30, 40), bold=1.0), "center")
    sheet.text(right, y, f"Print Date {printed} Page 1 of {source.whole(1, 6)}", body, "right")
    if source.chance(0.5):
        sheet.text(
            left,
            y,
            source.pick(("Contract Agreement Between:", "Remit Address:", f"{printed} {source.clock(True)}")),
            body,
        )
    call = source.pick("WK") + "".join(source.fake.random_uppercase_letter() for _ in range(3))
    y = _header(sheet, source, body, strong, left, right, y + 30, call)
    y = _lines(sheet, source, body, strong, left, right, y + size * 2, call, title)
    _foot(sheet, source, body, left, right, y)
    if hard:
        wear(sheet, source)
    return sheet


def _header(
    sheet: Sheet, source: Source, body: Style, strong: Style, left: float, right: float, y: float, call: str
) -> float:
    """Logo and addresses of station and agency on the left; labels and values in boxes on the right."""
    size = body.size
    middle = left + (right - left) * source.between(0.42, 0.5)
    mark = source.between(110, 170) if source.chance(0.75) else 0.0
    if mark:
        logo(sheet, source, left + 8, y, mark)
    x, line = left + mark + 30, y + size * 1.6
    station = [
        f"{call}-TV",
        f"{source.fake.city()} Television",
        *source.address(),
        f"Main: {_phone(source)}",
        f"Billing: {_phone(source)}",
    ]
    big = strong.but(size=size * source.between(1.0, 1.25))
    for text in station[: source.whole(4, 7)]:
        sheet.text(x, line, text, big)
        line += big.size * 1.2
    line = max(line, y + mark) + size * 1.5
    sheet.text(left, line, source.pick(("And:", "Billing Address:", "Agency:", "Bill To:")), body)
    line += size * 1.5
    trade = source.pick(("Media", "Strategies", "Advertising Inc.", "Media Group", "Consulting"))
    agency = f"{source.fake.last_name()} {trade}"
    for text in (
        agency,
        f"Attention: {source.pick(('Accounts Payable', source.person()))}",
        *source.address(),
    ):
        sheet.text(left + source.pick((40, 100)), line, text, strong if source.chance(0.8) else body)
        line += size * 1.3
    person = source.person()
    product = f"{person} for {source.pick(_OFFICES)}"
    flight = f"{source.date(2020, 2020, 'mm/dd/yy')} - {source.date(2020, 2020, 'mm/dd/yy')}"
    pairs = [
        ("Contract / Revision", f"{source.digits(6)} /"), ("Alt Order #", source.digits(8)),
        ("Product", product),
        ("Contract Dates", flight), ("Estimate #", source.digits(4)),
        ("Advertiser", f"POL/{person}/{source.pick('DRI')}"),
        ("Original Date / Rev", f"{flight[:8]} / {flight[:8]}"),
        ("Billing Cycle", source.pick(("EOM/EOC", "WEEKLY", "EOM"))),
        ("Billing Calendar", "Broadcast"), ("Cash/Trade", "Cash"), ("Property", call),
        ("Account Executive", source.person()),
        ("Sales Office", str(source.fake.city())), ("Special Handling", ""),
        ("Demographic", source.pick(("Adults 35+", "A18+", "RA50+"))),
        ("Agency Code", source.digits(4)), ("Advertiser Code", source.digits(4)), ("Product 1/2", ""),
        ("Invoice #", source.digits(7)),
        ("Order Flight", flight), ("Sales Region", source.pick(("National", "Local", "Regional"))),
        ("Agency Ref", source.digits(8)),
        ("Invoice Month", "March 2020"), ("Deal #", ""), ("Order Type", "GENERAL"),
        ("Agency Commission", "15%"),
    ]  # fmt: skip
    pairs = source.some(pairs, source.whole(10, 22))
    columns = source.pick((1, 2, 2)) if sheet.aspect < 1 else source.pick((2, 2, 3))
    rows = -(-len(pairs) // columns)
    height = size * source.between(1.4, 1.75)
    grey, lined = source.chance(0.4), source.chance(0.8)
    width = (right - middle) / columns
    for i, (label, value) in enumerate(pairs):
        x0, y0 = middle + (i // rows) * width, y + size * 2 + (i % rows) * height
        split = x0 + width * (0.42 if columns < 3 else 0.5)
        if lined:
            sheet.box(x0, y0, split, y0 + height, fill=225 if grey else None)
            sheet.box(split, y0, x0 + width, y0 + height)
        for text, start, stop in ((label, x0, split), (value, split, x0 + width)):
            while text and body.measure(text) > stop - start - 8:
                text = text.rpartition(" ")[0]
            sheet.text(start + 6, y0 + height * 0.72, text, body)
    return max(line, y + size * 2 + rows * height)


def _phone(source: Source) -> str:
    return f"({source.digits(3)}) {source.digits(3)}-{source.digits(4)}"


def _lines(
    sheet: Sheet,
    source: Source,
    body: Style,
    strong: Style,
    left: float,
    right: float,
    y: float,
    call: str,
    title: str,
) -> float:
    """The table of spots: a line for each buy, sometimes with its weeks below, and the totals."""
    size = body.size
    columns = [
        ("Line", 0.0), ("Ch", 0.05), ("Start Date", 0.10), ("End Date", 0.19), ("Description", 0.28),
        ("Start/End Time", 0.45),
        ("Days", 0.58), ("Length", 0.66), ("Spots/Week", 0.73), ("Rate", 0.84), ("Type", 0.90),
        ("Amount", 0.94),
    ]  # fmt: skip
    at = [left + (right - left) * share for _, share in columns]
    filled = source.chance(0.35)
    sheet.box(left, y - size * 1.2, right, y + size * 0.5, width=2 if filled else 0, fill=215 if filled else None)
    for (name, _), x in zip(columns, at, strict=True):
        sheet.text(x + 3, y, name, strong if filled else body)
    if not filled:
        sheet.rule(left, y + size * 0.4, right, y + size * 0.4, width=3)
    y += size * 1.8
    below = [left + (right - left) * share for share in (0.05, 0.15, 0.25, 0.38, 0.50)]
    weeks, boxed = source.chance(0.7), source.chance(0.4)
    floor = sheet.height - source.between(200, 330)
    spots, total, number = 0, 0.0, 0
    most = source.whole(1, 16)
    while y < floor and number < most:
        number += 1
        count, rate = source.whole(1, 5), float(source.whole(2, 120) * 25)
        start, end = (source.date(2020, 2020, "mm/dd/yy") for _ in range(2))
        hour = source.whole(1, 11)
        days = "".join(d if source.chance(0.7) else "-" for d in "MTWTFSS")
        cells = [
            f"N {number}", call, start, end, source.pick(_SHOWS), f"{hour}:30 AM-{hour + 1}:00 PM", days,
            source.pick((":30", "1:00", ":15")),
            str(count), f"${rate:,.2f}", "NM", f"${rate * count:,.2f}",
        ]  # fmt: skip
        for cell, x in zip(cells, at, strict=True):
            sheet.text(x + 3, y, cell, body)
        if weeks and y + size * 2.6 < floor:
            for name, x in zip(("Start Date", "End Date", "Weekdays", "Spots/Week", "Rate"), below, strict=True):
                sheet.text(x + 20, y + size * 1.2, name, body)
                sheet.rule(x + 20, y + size * 1.32, x + 20 + body.measure(name), y + size * 1.32, width=1)
            for cell, x in zip((start, end, days, str(count), f"${rate:,.2f}"), below, strict=True):
                sheet.text(x + 24, y + size * 2.3, cell, body)
            sheet.text(left + 6, y + size * 2.3, "Week:", body)
            y += size * 2.4
        if boxed:
            sheet.rule(left, y + size * 0.35, right, y + size * 0.35)
        y += size * source.between(1.3, 1.5)
        spots, total = spots + count, total + rate * count
    sheet.rule(left, y - size * 0.9, right, y - size * 0.9, width=3)
    y += size * 0.3
    sheet.text(at[5], y, "Totals", body)
    sheet.text(at[8], y, str(spots), body)
    sheet.text(right - 4, y, f"${total:,.2f}", body, "right")
    y += size * 2.5
    sums = [("Gross Amount", total), ("Agency Commission", total * 0.15), ("Net Amount Due", total * 0.85)]
    if title == "INVOICE" or source.chance(0.5):
        for name, amount in sums:
            sheet.text(at[6], y, name, strong, "right")
            sheet.text(at[8], y, f"${amount:,.2f}", strong, "right")
            y += size * 1.6
    return y


def _foot(sheet: Sheet, source: Source, body: Style, left: float, right: float, y: float) -> None:
    size = body.size
    if y < sheet.height - 260 and source.chance(0.45):
        y += size * 3
        end = sheet.text(left + 40, y, "Signature:", body.but(bold=0.6))
        sheet.rule(end + 8, y, end + 420, y)
        if source.chance(0.5):
            signature(sheet, source, end + 40, y, 250)
        end = sheet.text(end + 460, y, "Date:", body.but(bold=0.6))
        sheet.rule(end + 8, y, min(end + 250, right), y)
    small = body.but(size=size * 0.8, fixed=False)
    y = max(y + size * 2.5, sheet.height - source.between(130, 200))
    for sentence in source.some(_FOOT, source.whole(1, 5)):
        y = sheet.paragraph(left, y, right - left, sentence, small, 1.2, "center", bottom=sheet.height - 30)
    if source.chance(0.4):
        sheet.text(right, sheet.height - 22, f"powered by {source.fake.last_name()}Orbit", small, "right")
