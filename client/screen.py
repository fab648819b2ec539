"""Words on a screen as they are: what a terminal would obey instead of show is written out.

It lays nothing out.
"""

from rich.text import Text


def plain(words: str, style: str = "") -> Text:
    """Return words without markup, with each character that cannot be shown as its escape.

    Names in a study are its author's: none of them may move the cursor or turn the reading around.
    """
    return Text("".join(c if c.isprintable() else repr(c)[1:-1] for c in words), style=style)
