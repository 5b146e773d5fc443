"""Tests that files are written whole or not at all."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsekit.files import write_whole


@given(st.text(st.characters(exclude_characters="\r", exclude_categories=["Cs"])))
def test_what_is_written_is_read(tmp_path_factory, text):
    path = tmp_path_factory.mktemp("whole") / "a.txt"
    assert write_whole(path, text) == path and path.read_text(encoding="utf-8") == text
    assert list(path.parent.iterdir()) == [path]


def test_what_fails_leaves_what_was_there(tmp_path):
    path = tmp_path / "a.png"
    write_whole(path, "old")

    def half(unfinished):
        assert unfinished.suffix == ".png" and path.read_text() == "old"
        unfinished.write_text("ne")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_whole(path, half)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
