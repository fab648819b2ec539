"""Words on a screen as they are: what a terminal would obey instead of show is written out.

It lays out nothing but lines, which are broken between words.
"""

from rich.console import Console
from rich.text import Text


def plain(words: str, style: str = "") -> Text:
    """Return words without markup, with each character that cannot be shown as its escape.

    Names in a study are its author's: none of them may move the cursor or turn the reading around.
    """
    return Text("".join(c if c.isprintable() else repr(c)[1:-1] for c in words), style=style)


def say(console: Console, words: str) -> None:
    """Print one line of words; a file or a pipe gets it whole, however long."""
    console.print(plain(words), soft_wrap=not console.is_terminal)
