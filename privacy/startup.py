"""The check that every program makes first: all five packages come from one folder.

Another distribution that owns a package named ``client`` would replace ours without a word.
"""

from importlib.util import find_spec
from pathlib import Path

from privacy.errors import StudyError

PACKAGES = ("privacy", "shared_models", "client", "server", "simulations")


def check_packages() -> Path:
    """Return the folder that holds the five packages; nothing of them is imported.

    Raises:
        StudyError: a package is missing or comes from another folder.
    """
    folders: dict[str, Path] = {}
    for name in PACKAGES:
        spec = find_spec(name)
        locations = list(spec.submodule_search_locations or ()) if spec else []
        if len(locations) != 1:
            raise StudyError(f"package {name}: expected in one folder, found in {len(locations)}")
        folders[name] = Path(locations[0]).resolve().parent
    ours = Path(__file__).resolve().parent.parent
    for name, folder in folders.items():
        if folder != ours:
            raise StudyError(
                f"package {name}: expected in {ours}, found in {folder}; nothing was started",
                "another installed distribution owns that name: install fedward on its own",
            )
    return ours
