"""A seeded source of names, dates, amounts and sentences for drawn pages."""

from __future__ import annotations

import threading
import zlib
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from faker import Faker

T = TypeVar("T")
_MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October",
    "November", "December",
)  # fmt: skip
_local = threading.local()  # one Faker a thread: it is slow to make, and reseeding is not safe across threads


class Source:
    """All randomness of one page; the same (label, seed, hard) gives the same draws, at any scale.

    ``scale`` is the number of pixels that sheets are drawn with for each pixel of a layout.
    """

    def __init__(self, label: str, seed: int, hard: bool, scale: float = 1.0) -> None:
        self.scale = scale
        entropy = [zlib.crc32(label.encode()), abs(seed), int(seed < 0), int(hard)]
        self.rng = np.random.default_rng(entropy)
        if not hasattr(_local, "fake"):
            _local.fake = Faker("en_US")
        self.fake: Faker = _local.fake
        self.fake.seed_instance(int(self.rng.integers(2**31)))

    def pick(self, options: Sequence[T]) -> T:
        """One of the options."""
        return options[int(self.rng.integers(len(options)))]

    def some(self, options: Sequence[T], count: int) -> list[T]:
        """``count`` different options (or all, where there are fewer), in random order."""
        return [options[int(i)] for i in self.rng.permutation(len(options))[:count]]

    def chance(self, probability: float) -> bool:
        """True with this probability."""
        return bool(self.rng.random() < probability)

    def whole(self, low: int, high: int) -> int:
        """A whole number from ``low`` to ``high``, both included."""
        return int(self.rng.integers(low, high + 1))

    def between(self, low: float, high: float) -> float:
        """A number from ``low`` to ``high``."""
        return float(self.rng.uniform(low, high))

    def digits(self, count: int) -> str:
        """A string of digits that does not begin with 0."""
        return str(self.whole(10 ** (count - 1), 10**count - 1))

    def money(self, low: float, high: float) -> str:
        """An amount with two decimals."""
        return f"{self.between(low, high):,.2f}"

    def date(self, first: int = 1975, last: int = 2020, form: str = "m/d/y") -> str:
        """A date between two years; forms are m/d/y, mm/dd/yy, dd/mm/yyyy and long."""
        year, month, day = self.whole(first, last), self.whole(1, 12), self.whole(1, 28)
        match form:
            case "mm/dd/yy":
                return f"{month:02}/{day:02}/{year % 100:02}"
            case "mm/dd/yyyy":
                return f"{month:02}/{day:02}/{year}"
            case "dd/mm/yyyy":
                return f"{day:02}/{month:02}/{year}"
            case "long":
                return f"{_MONTHS[month - 1]} {day}, {year}"
        return f"{month}/{day}/{year % 100:02}"

    def clock(self, seconds: bool = False) -> str:
        """A time of day with AM or PM."""
        middle = f":{self.whole(0, 59):02}" if seconds else ""
        return f"{self.whole(1, 12)}:{self.whole(0, 59):02}{middle} {self.pick(('AM', 'PM'))}"

    def company(self) -> str:
        """A made-up company."""
        return str(self.fake.company())

    def person(self) -> str:
        """A made-up person."""
        return str(self.fake.name())

    def address(self) -> list[str]:
        """A made-up address of two or three lines."""
        lines = [
            str(self.fake.street_address()),
            f"{self.fake.city()}, {self.fake.state_abbr()} {self.fake.postcode()}",
        ]
        if self.chance(0.3):
            lines.insert(1, f"Suite {self.whole(2, 1900)}")
        return lines

    def chatter(self, sentences: int) -> str:
        """Meaningless English sentences."""
        return " ".join(str(self.fake.sentence(self.whole(8, 16))) for _ in range(sentences))
