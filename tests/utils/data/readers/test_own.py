"""utils/data/readers/own.py: sample ids of the user's own images."""

from hypothesis import given
from hypothesis import strategies as st

from utils.data.readers.own import short_ids


@given(paths=st.lists(st.from_regex(r"[ab](\.(jpg|png)){0,3}", fullmatch=True), unique=True))
def test_different_paths_have_different_ids(paths):
    ids = short_ids(paths)
    assert len(set(ids)) == len(paths)
    assert all(path.startswith(name) for path, name in zip(paths, ids, strict=True))
