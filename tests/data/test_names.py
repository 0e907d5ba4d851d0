"""One rule for names: hidden files are left out, endings match in any case, lists may begin with a byte order mark."""

import pytest

from taskformer.data.names import existing, files_in, folders_in, names_in, read_lines
from taskformer.errors import CorruptFileError


@pytest.fixture
def folder(tmp_path):
    for name in ("b.jpg", "a.JPG", "c.Jpeg", "._b.jpg", ".hidden.jpg", "note.txt", "d.png"):
        (tmp_path / name).touch()
    for name in ("sub.jpg", "z", ".git"):
        (tmp_path / name).mkdir()
    return tmp_path


def test_files_are_found_by_their_endings_in_any_case(folder):
    assert {path.name for path in files_in(folder, [".jpg", ".jpeg"])} == {"a.JPG", "b.jpg", "c.Jpeg"}
    assert names_in(folder, ".jpg") == ["a", "b"]
    assert folders_in(folder) == ["sub.jpg", "z"]
    assert list(files_in(folder / "nowhere", [".jpg"])) == folders_in(folder / "nowhere") == []


def test_a_file_whose_ending_is_in_other_letters_is_found(folder):
    assert existing(folder / "a.jpg") == folder / "a.JPG"
    assert existing(folder / "b.JPG") == folder / "b.jpg"
    assert existing(folder / "c.jpeg") == folder / "c.Jpeg"
    assert existing(folder / "A.jpg") == folder / "A.jpg"  # names differ, only endings do not


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_lists_are_read_whatever_wrote_them(tmp_path, encoding, end):
    (tmp_path / "x.txt").write_bytes(end.join(["a b", "", " ü ", "c/d", ""]).encode(encoding))
    assert read_lines(tmp_path / "x.txt") == ["a b", "ü", "c/d"]


def test_a_list_that_is_no_text_is_named(tmp_path):
    (tmp_path / "x.txt").write_bytes(b"a\n\xff\xd8\xff")
    with pytest.raises(CorruptFileError, match=r"x\.txt is not a text file in UTF-8 \(invalid start byte at byte 2\)"):
        read_lines(tmp_path / "x.txt")
