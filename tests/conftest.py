"""The order of the suite: files that wait for processes begin first, not last."""

import pytest

FIRST = ("system", "simulations", "faults")  # folders of the slowest files, slowest first


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {name: place for place, name in enumerate(FIRST)}
    items.sort(key=lambda item: places.get(item.path.parent.name, len(FIRST)))
