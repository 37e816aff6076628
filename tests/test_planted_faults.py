"""The table of planted faults fits the sources."""

from pathlib import Path

from planted_faults import FAULTS, plan

ROOT = Path(__file__).parents[1]


def test_each_fault_has_a_place():
    planned, missing = plan(ROOT, FAULTS)
    assert not missing, '\n'.join(missing)
    assert len(planned) == len(FAULTS)


def test_a_fault_without_a_place_is_an_error():
    lost = FAULTS[0]._replace(forms=[('a snippet of no source', ''), ('import', '')])
    without_tests = FAULTS[0]._replace(tests='test_of_nothing.py')
    _, missing = plan(ROOT, [lost, FAULTS[1], without_tests])
    assert [error.rpartition(': ')[2] for error in missing] == [
        'no snippet occurs exactly once; add its new form',
        'none of the test files test_of_nothing.py exists',
    ]
