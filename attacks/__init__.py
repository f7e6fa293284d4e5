"""Attacks on the toolkit: packages, pages, word files, OCR engines and names that a hostile or broken world hands over.

The contract: a package is refused with an :class:`~ee_export.errors.EeError`, or it loads and predicts. A page is answered, or
gets an EeError. Nothing else may happen: no other exception, no crash, no hang, no memory without bound.

    python -m attacks PACKAGE                                all families, 2 of 100 attacks
    python -m attacks PACKAGE --whole                        all attacks
    python -m attacks PACKAGE --replay images-flip:17        one attack, with its traceback
"""
