"""JSON is refused in one line if parsers read it differently or it breaks a reader."""

import pytest

from ee_export.package.strict_json import parse


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b'{"a": NaN}', "NaN is no JSON number"),
        (b"[-Infinity]", "-Infinity is no JSON number"),
        (b"[1e400]", "the number 1e400 is too large"),
        (b"[" + b"9" * 30 + b"]", "too large"),
        (b"[" + b"9" * 9000 + b"]", "too large"),
        (b"[18446744073709551616]", "too large"),
        (b'{"a": 1, "b": {"c": 1, "c": 2}}', "the key 'c' is repeated"),
        (b'["\\ud800"]', "half a surrogate pair"),
        (b'{"\\udc00": 1}', "half a surrogate pair"),
        (b"[" * 100_000, "nested"),
        (b"[" * 65 + b"]" * 65, "nested more than 64 deep"),
        (b"\xef\xbb\xbf{}", "BOM"),
        ("{}".encode("utf-16"), "not UTF-8"),
        ('"é"'.encode("latin-1"), "not UTF-8"),
        (b'{"a": 1} x', "Extra data"),
        (b'["\x1b"]', "control character"),
        (b"", "Expecting value"),
    ],
)
def test_a_file_with_two_meanings_or_none_is_refused(data: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason) as refused:
        parse(data)
    assert len(str(refused.value)) < 200 and str(refused.value).isprintable()


def test_complete_surrogate_pairs_and_large_numbers_are_read() -> None:
    assert parse(b'["\\ud83d\\ude00", 18446744073709551615, -9223372036854775808, 1e308]') == [
        "😀",
        2**64 - 1,
        -(2**63),
        1e308,
    ]


def test_nesting_up_to_the_limit_is_read() -> None:
    assert parse(b"[" * 64 + b"]" * 64)
