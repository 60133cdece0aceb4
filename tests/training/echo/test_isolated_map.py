"""Mapping in processes that may die."""

import pytest
from crashing import square

from ecgformers.training.echo.isolated_map import isolated_map


def test_an_item_that_kills_its_process_costs_only_itself():
    results = list(isolated_map(square, range(12), 2, on_death=lambda number: -number))
    assert sorted(results) == sorted(-3 if number == 3 else number**2 for number in range(12))


def test_exceptions_end_it():
    with pytest.raises(ValueError, match="fifty"):
        list(isolated_map(square, [1, 50], 1, on_death=lambda number: -number))
