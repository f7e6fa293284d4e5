"""Layouts of receipt: narrow till receipts and small tax invoices, as strips or lying on a larger sheet."""

from __future__ import annotations

from draw.marks import scribble
from draw.page import Sheet, Style
from draw.source import Source

_SHOPS = (
    "TRADING",
    "HARDWARE",
    "ENTERPRISE",
    "RESTAURANT",
    "BOOK STORE",
    "MINI MARKET",
    "BAKERY",
    "STATIONERY",
    "CAFE",
    "PHARMACY",
)
_PLACES = (
    "KUALA LUMPUR", "PETALING JAYA", "SHAH ALAM", "JOHOR BAHRU", "KLANG", "IPOH", "MELAKA", "SEREMBAN",
    "SUBANG JAYA", "PUCHONG",
)  # fmt: skip
_STREETS = (
    "CEMPAKA",
    "MELATI",
    "BUNGA RAYA",
    "KENANGA",
    "MAWAR",
    "INDAH",
    "SETIA",
    "UTAMA",
    "PERDANA",
    "BAHAGIA",
    "MERBAU",
)
_GOODS = (
    "RICE 5KG", "WATER 500ML", "COFFEE O", "ICED TEA", "FRIED NOODLES", "CHICKEN SET", "BREAD WHITE",
    "EGG 10S", "BATTERY AA 4S",
    "PAINT BRUSH 2IN", "WIRE TAPE", "HAMMER 16OZ", "A4 PAPER 80G", "PEN BLUE", "FILE CLEAR A4", "SOAP BAR",
    "SHAMPOO 340ML", "LED BULB 9W",
    "SUGAR 1KG", "COOKING OIL 2L", "CAKE SLICE", "MILK 1L", "BISCUIT TIN", "PVC PIPE 1/2", "SCREW SET",
    "GLUE STICK", "NOTE BOOK",
    "TOM YAM SOUP", "ICE CREAM", "CURRY PUFF", "MASKING TAPE", "PLASTIC BAG L", "TISSUE BOX", "SAND PAPER",
    "ORANGE JUICE",
)  # fmt: skip


def receipt(source: Source, hard: bool) -> Sheet:
    """A receipt: shop, address, numbers, goods, totals, tax summary, thanks."""
    laid = source.chance(0.33)  # a small receipt on a large sheet
    aspect = source.between(0.62, 0.72) if laid else source.between(0.34, 0.66)
    paper = 255 if laid else source.whole(236, 255)
    sheet = Sheet(aspect, source, squeeze=source.between(0.72, 0.95), paper=paper)
    left, right = (0.3, 0.68) if laid else (source.between(0.04, 0.1), source.between(0.9, 0.97))
    left, right = left * sheet.width, right * sheet.width
    columns = source.whole(32, 46)
    fixed = source.chance(0.7)
    size = (right - left) / columns / 0.6 if fixed else (right - left) / columns / 0.5
    size = min(size, 40.0)
    ink = source.whole(0, 130) if not laid else 0
    body = Style(size, fixed=fixed, bold=source.pick((0.0, 0.2, 0.6)), serif=source.chance(0.3), ink=ink)
    leading = size * source.between(1.1, 1.45)
    body_lines = _lines(source)
    room = sheet.height * (0.62 if laid else 0.94)
    if leading * len(body_lines) > room:
        body_lines = [line for line in body_lines if line[0] != "extra"]
    leading = min(leading, room / len(body_lines))
    body = body.but(size=min(size, leading / 1.08))
    y = sheet.height * (0.17 if laid else source.between(0.02, 0.05)) + leading
    if not laid:
        y += max(0.0, (room - leading * len(body_lines)) * source.between(0.1, 0.6))
    for kind, cells in body_lines:
        _line(sheet, source, kind, cells, body, left, right, y)
        y += leading
    if not laid:
        _edges(sheet, source)
    if source.chance(0.3):
        scribble(sheet, source, source.between(0.3, 0.6) * sheet.width, sheet.height * 0.04 + 30)
    return sheet


def _line(
    sheet: Sheet,
    source: Source,
    kind: str,
    cells: tuple[str, ...],
    body: Style,
    left: float,
    right: float,
    y: float,
) -> None:
    match kind:
        case "head":
            big = body.but(
                size=min(body.size * 1.25, body.size * (right - left) / max(body.measure(cells[0]), 1)),
                bold=body.bold + 0.5,
            )
            sheet.text((left + right) / 2, y, cells[0], big, "center")
        case "middle" | "extra":
            fit = min(1.0, (right - left) / max(body.measure(cells[0]), 1))
            sheet.text((left + right) / 2, y, cells[0], body.but(size=body.size * fit), "center")
        case "dash":
            sheet.dashes(left, right, y - body.size * 0.3, dash=source.pick((4, 6, 10)), ink=body.ink)
        case "rule":
            sheet.rule(left, y - body.size * 0.3, right, y - body.size * 0.3, ink=body.ink)
        case "pair" | "total":
            style = body.but(bold=body.bold + 0.6) if kind == "total" else body
            fit = min(1.0, (right - left) * 0.95 / max(style.measure(" ".join(cells)), 1))
            style = style.but(size=style.size * fit)
            sheet.text(left, y, cells[0], style)
            sheet.text(right, y, cells[1], style, "right")
        case "cells":
            fit = min(1.0, (right - left) * 0.85 / max(body.measure(" ".join(cells)), 1))
            body = body.but(size=body.size * fit)
            stops = {2: (1.0,), 3: (0.7, 1.0), 4: (0.55, 0.76, 1.0)}[len(cells)]
            sheet.text(left, y, cells[0], body)
            for cell, stop in zip(cells[1:], stops, strict=True):
                sheet.text(left + (right - left) * stop, y, cell, body, "right")
        case _:
            sheet.text(left, y, cells[0], body)


Line = tuple[str, tuple[str, ...]]


def _lines(source: Source) -> list[Line]:
    """The receipt as lines: how a line is set, and its cells."""
    shop = f"{source.fake.last_name()} {source.fake.last_name()} {source.pick(_SHOPS)}".upper()
    way = source.pick(("JALAN", "LORONG", "PERSIARAN"))
    street = f"{way} {source.pick(_STREETS)} {source.whole(1, 30)}/{source.whole(1, 60)}"
    rule = source.pick(("dash", "dash", "rule"))
    lines: list[Line] = [
        ("head", (f"{shop} SDN BHD" if source.chance(0.6) else shop,)),
        ("middle", (f"({source.digits(6)}-{source.pick('MKTUXV')})",)),
        ("middle", (f"NO.{source.whole(1, 300)}, {street},",)),
        ("extra", (f"TAMAN {source.pick(_STREETS)},",)),
        ("middle", (f"{source.digits(5)} {source.pick(_PLACES)}.",)),
        ("middle", (f"TEL : 0{source.whole(3, 7)}-{source.digits(8)}",)),
        ("middle", (f"GST ID : 000{source.digits(9)}",)),
        ("blank", ("",)),
        (
            "middle",
            (
                source.pick(
                    (
                        "TAX INVOICE",
                        "SIMPLIFIED TAX INVOICE",
                        "RECEIPT",
                        "CASH BILL",
                        "Tax Invoice",
                        "OFFICIAL RECEIPT",
                    )
                ),
            ),
        ),
        (rule, ()),
        ("pair", (f"Invoice No: {source.pick(('CS', 'INV', 'R', ''))}{source.digits(7)}", "")),
        ("pair", (f"Date: {source.date(2016, 2018, 'dd/mm/yyyy')}", source.clock(source.chance(0.4)))),
        ("pair", (f"Cashier: {source.fake.first_name().upper()}", f"Counter: {source.whole(1, 9)}")),
        (rule, ()),
    ]
    wide = source.chance(0.5)
    lines.append(("cells", ("Item", "Qty", "Price", "Amount") if wide else ("Description", "RM")))
    lines.append((rule, ()))
    total, count = 0.0, source.whole(1, 9)
    for goods in source.some(_GOODS, count):
        quantity, price = source.pick((1, 1, 1, 2, 3, 5)), round(source.between(0.8, 60), 2)
        amount = quantity * price
        total += amount
        if wide:
            lines.append(("left", (goods if source.chance(0.4) else f"{source.digits(6)} {goods}",)))
            lines.append(
                (
                    "cells",
                    (
                        f"  {source.digits(5)}",
                        str(quantity),
                        f"{price:.2f}",
                        f"{amount:.2f} {source.pick(('SR', 'S', ''))}",
                    ),
                )
            )
        else:
            lines.append(("pair", (f"{quantity} {goods}", f"{amount:.2f}")))
    lines.append((rule, ()))
    tax = total * 0.06 / 1.06
    paid = total + source.pick((0.0, 1.0, 5.0, 10.0))
    rounded = round(round(total * 20) / 20 - total, 2)
    sums = [
        ("Sub Total", total),
        ("Total Excl. GST", total - tax),
        ("GST 6%", tax),
        ("Rounding Adj", rounded),
    ]
    for name, value in sums[: source.whole(1, 4)]:
        lines.append(("pair", (name, f"{value:.2f}")))
    lines.append(
        (
            "total",
            (
                source.pick(("TOTAL", "Total Incl. GST (RM)", "NET TOTAL", "Total Sales RM", "Grand Total")),
                f"{total + rounded:.2f}",
            ),
        )
    )
    lines.append(("pair", (source.pick(("CASH", "Cash", "VISA CARD", "Tendered")), f"{paid:.2f}")))
    lines.append(("pair", ("CHANGE", f"{paid - total - rounded:.2f}")))
    if source.chance(0.75):
        lines += [
            (rule, ()), ("cells", ("GST Summary", "Amount(RM)", "Tax(RM)")),
            ("cells", (source.pick(("SR @ 6%", "S = 6%", "SR 6 %")), f"{total - tax:.2f}", f"{tax:.2f}")),
            ("extra", (f"Total Items : {count}",)),
        ]  # fmt: skip
    lines.append(("blank", ("",)))
    if source.chance(0.4):
        lines += [
            ("pair", (f"{word}: {source.digits(6)}", ""))
            for word in source.some(("Approval", "Terminal", "Member ID", "Points"), 2)
        ]
    thanks = (
        "THANK YOU", "THANK YOU PLEASE COME AGAIN", "Goods sold are not returnable",
        "Please keep this receipt", "Have a nice day",
        "Exchange within 7 days with receipt", "Thank You. See you soon!",
    )  # fmt: skip
    lines += [("middle", (text,)) for text in source.some(thanks, source.whole(1, 3))]
    return lines


def _edges(sheet: Sheet, source: Source) -> None:
    """The dark scanner bed that shows at the corners and edges of a torn strip of paper."""
    width, height = sheet.width, sheet.height
    dark = source.whole(0, 70)
    sheet.beyond = dark if source.chance(0.6) else sheet.paper
    if source.chance(0.4):
        xs = [width * i / 40 for i in range(41)]
        top = [(x, source.between(0, 14)) for x in xs]
        sheet.draw.polygon([(0, 0), *top, (width, 0)], fill=dark)
        foot = [(x, height - source.between(0, 18)) for x in xs]
        sheet.draw.polygon([(0, height), *foot, (width, height)], fill=dark)
    for side in (0, width):
        if source.chance(0.3):
            a, b = source.between(0, 16), source.between(0, 16)
            inward = 1 if side == 0 else -1
            sheet.draw.polygon(
                [(side, 0), (side + inward * a, 0), (side + inward * b, height), (side, height)], fill=dark
            )
    if source.chance(0.3):
        cut = source.between(30, 110)
        sheet.draw.polygon([(width, 0), (width - cut, 0), (width, cut)], fill=dark)
