"""Packages as files: manifest, recipes, strict readers, and writers that leave nothing half written."""

from ee_export.package.store import Package, open_package

__all__ = ["Package", "open_package"]
