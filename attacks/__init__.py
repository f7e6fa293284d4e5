"""Attacks on packages, pages and commands: each is refused or answered, and none ends a process."""
