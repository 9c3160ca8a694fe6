"""What cards and tables share."""

import re


def escaped(text: str) -> str:
    """Text, in a line, as Markdown shows it as it stands, in a table too."""
    return re.sub(r"([\\|*_`<\[\]])", r"\\\1", re.sub(r"[\r\n]", " ", text))
