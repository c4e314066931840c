"""Public names and signatures are a contract: they change only together with their list.

``python -m tests.test_public_names`` writes the list anew.
"""

import inspect
from pathlib import Path

import fastgrad
import fastgrad.book

LIST = Path(__file__).with_name("public_names.txt")


def signature(thing):
    """Return names, kinds and defaults of the parameters; what they are annotated with is free."""
    try:
        found = inspect.signature(thing)
    except (TypeError, ValueError):
        return ""
    bare = [p.replace(annotation=p.empty) for p in found.parameters.values()]
    return str(found.replace(parameters=bare, return_annotation=found.empty))


def members(cls):
    """Yield the public members of a class, each with its signature if it can be called."""
    for name in sorted(set(dir(cls)) - set(dir(UserWarning))):
        if not name.startswith("_"):
            member = getattr(cls, name)
            yield name + signature(member) if callable(member) else name


def public_names():
    """Return every public name of the package, a line each."""
    lines = []
    for module in (fastgrad, fastgrad.book):
        for name in sorted(module.__all__):
            thing = getattr(module, name)
            whole = f"{module.__name__}.{name}"
            lines.append(whole + signature(thing) if callable(thing) else whole)
            if inspect.isclass(thing):
                lines += [f"    .{member}" for member in members(thing)]
    return "\n".join(lines) + "\n"


def test_public_names_are_as_listed():
    assert public_names() == LIST.read_text()


if __name__ == "__main__":
    LIST.write_text(public_names())
