"""What do the help pages of our commands leave out?"""


def default_worth_showing(value: object) -> str | None:
    """Return how a help page shows a default, or None for one that says nothing: a switch that is off, an empty list or text."""
    if value is False or value is None or value in ((), "", []):
        return None
    return ", ".join(str(part) for part in value) if isinstance(value, tuple | list) else str(value)
