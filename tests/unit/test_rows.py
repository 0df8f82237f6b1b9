"""What is said of requirement rows in rows.yaml holds together: one word on each, and proofs that are there."""

from __future__ import annotations

from coverage_map import judged, marks


def test_a_row_is_proven_replaced_or_open_and_proofs_are_files() -> None:
    replaced, open_ = judged()  # raises SystemExit for a proof that is no file
    proven = marks().keys()
    assert sorted(replaced.keys() & open_.keys()) == []
    assert sorted(proven & (replaced.keys() | open_.keys())) == []
    assert all(why["by"] for why in replaced.values())
    assert all(open_.values())
