"""Tests of the planted faults: the text of each occurs once in its file, so that the fault breaks that line."""

from faults import FAULTS, ROOT, judges


def test_every_fault_fits_its_file_once():
    times = {name: (ROOT / file).read_text().count(right) for name, file, right, *_ in FAULTS}
    assert {name: n for name, n in times.items() if n != 1} == {}


def test_the_tests_that_answer_for_a_fault_are_there():
    files = {test.split("::")[0] for fault in FAULTS for test in judges(fault)}
    assert [file for file in sorted(files) if not (ROOT / file).exists()] == []
