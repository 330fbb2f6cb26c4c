"""From rows to ranks: areas, tests, tables. It knows rows only."""
