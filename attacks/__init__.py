"""Attacks on this package, seeded: each counts what was neither refused nor right."""
