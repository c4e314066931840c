# ruff: noqa
"""Stands where the book's own file would; whoever imports it has not been served."""

raise ImportError("a module of the book's own folder was imported")
