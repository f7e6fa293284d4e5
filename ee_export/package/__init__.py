"""Packages as files: manifest, recipes, strict readers and atomic writers."""

from ee_export.package.store import Package, open_package

__all__ = ["Package", "open_package"]
