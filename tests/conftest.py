"""The order of the suite: files that wait for processes lie among those that compute, none last."""

import pytest

SOONER = 0.75  # where the last file that waits begins, of the way through the others


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Spread tests/system over the suite: three such files at once are slower than one by one."""
    files = list(dict.fromkeys(item.path for item in items))
    waits = [path for path in files if path.parent.name == "system"]
    others = [path for path in files if path.parent.name != "system"]
    place = {path: number / len(others) for number, path in enumerate(others)}
    place |= {path: SOONER * number / len(waits) for number, path in enumerate(waits)}
    items.sort(key=lambda item: place[item.path])
