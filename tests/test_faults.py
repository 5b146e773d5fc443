"""The faults that are planted: each still stands where it says, so that planting it breaks that line."""

from faults import FAULTS, ROOT


def test_every_fault_fits_its_file_once():
    times = {name: (ROOT / file).read_text().count(right) for name, file, right, _ in FAULTS}
    assert {name: n for name, n in times.items() if n != 1} == {}
