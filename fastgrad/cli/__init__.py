"""The command line: its arguments, and what each command does. Begin with `parser`.

It may import everything below; nothing imports it but ``__main__``.
"""
