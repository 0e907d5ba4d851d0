"""A data set is prepared and imitated as soon as a file of its name lies in the folder for it."""

import pytest

from taskformer.data.datamodules import data_modules
from taskformer.datatools.miniature import WRITERS, split_swapper, writer
from taskformer.datatools.prepare import PREPARED, preparer
from taskformer.errors import UnknownNameError


def test_every_file_is_a_data_sets_and_has_its_functions():
    assert {*PREPARED, *WRITERS} <= data_modules().keys()
    assert [preparer(name).__name__ for name in PREPARED] == [f"prepare_{name}" for name in PREPARED]
    assert [writer(name).__name__ for name in WRITERS] == [f"write_{name}" for name in WRITERS]
    assert all(callable(split_swapper(name)) for name in WRITERS)


@pytest.mark.parametrize(("find", "what"), [(preparer, "data set"), (writer, "miniature")])
def test_other_names_are_corrected(find, what):
    with pytest.raises(UnknownNameError, match=rf"unknown {what} 'nyu' \(did you mean 'nyud'"):
        find("nyu")
