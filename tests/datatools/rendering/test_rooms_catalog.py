"""Catalogue parsing, class rules, splits and attribution; on tiny zips written here."""

import zipfile

import pytest

from taskformer.data.datasets.rooms import CLASSES
from taskformer.datatools.rendering.catalog import (
    LICENCES,
    PROPERTIES,
    RULES,
    Entry,
    attribution,
    class_of,
    parse_properties,
    pool_of,
    read_catalog,
    split_keys,
)

TEXT = r"""
id=Catalog
name#1=Chair
category#1=Living room
model#1=/demo/chair/chair.obj
width#1=50.0
depth#1=55.0
height#1=90.0
dropOnTopElevation#1=45.0
creator#1=Andr\u00e9
name#2=Old radio
category#2=\
    Living room
model#2=/demo/radio.obj
width#2=30
depth#2=10
height#2=20
elevation#2=120
modelRotation#2=1 0 0 0 0 1 0 -1 0
creator#2=Scopia
name#3=Not a mesh
model#3=/demo/x.3ds
"""


def write_catalog(folder, name="Scopia", text=TEXT):
    with zipfile.ZipFile(folder / f"{name}.sh3f", "w") as archive:
        archive.writestr(PROPERTIES, text.encode("latin-1"))
    return folder


def entry(name, category="Living room", height=0.8, elevation=0.0, key="demo--x"):
    return Entry(key, name, category, "Scopia", "someone", "demo/x.obj", (0.5, 0.5, height), elevation, height)


def test_properties_know_escapes_and_continuation_lines():
    first, second, _ = parse_properties(TEXT)
    assert first["creator"] == "André"
    assert second["category"] == "Living room"


def test_sizes_are_metres_and_other_formats_are_left_out(tmp_path):
    chair, radio = read_catalog(write_catalog(tmp_path))
    assert (chair.key, chair.size, chair.top, chair.rotation) == ("demo--chair", (0.5, 0.55, 0.9), 0.45, None)
    assert radio.elevation == pytest.approx(1.2)
    assert radio.top == radio.size[2]
    assert radio.rotation == (1, 0, 0, 0, 0, 1, 0, -1, 0)


def test_a_folder_without_catalogues_says_what_to_install(tmp_path):
    (tmp_path / "Unknown.sh3f").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match="sweethome3d-furniture"):
        read_catalog(tmp_path)


def test_a_zip_without_table_of_contents_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "Scopia.sh3f", "w") as archive:
        archive.writestr("x", "y")
    with pytest.raises(ValueError, match="holds no Plugin"):
        read_catalog(tmp_path)


@pytest.mark.parametrize(
    ("name", "category", "height", "pool"),
    [
        ("Chair", "Living room", 0.9, "chair.dining"),
        ("Chair", "Office", 0.9, "chair.office"),
        ("Winchester armchair", "Living room", 0.8, "chair.armchair"),
        ("Corner sofa", "Living room", 0.8, "sofa.sofa"),
        ("Coffee table", "Living room", 0.45, "table.coffee"),
        ("Glass table", "Living room", 0.77, "table.dining"),
        ("Bedside table", "Bedroom", 0.5, "cabinet.low"),
        ("Pool table", "Miscellaneous", 0.82, None),
        ("Desk lamp", "Lights", 0.4, "lamp.table"),
        ("Desk", "Office", 0.75, "table.desk"),
        ("Female", "Characters", 1.68, "person.standing"),
        ("Sitting female", "Characters", 0.78, "person.floor"),
        ("Sitting female", "Characters", 1.3, None),
        ("Double window 3 panes", "Doors and windows", 2.0, "window.window"),
        ("Window shutter", "Doors and windows", 1.2, None),
        ("Garage door", "Doors and windows", 2.2, None),
        ("Truck", "Vehicles", 4.0, None),
        ("Bamboo", "Exterior", 5.0, None),
        ("Wall switch", "Miscellaneous", 0.1, None),
    ],
)
def test_class_rules(name, category, height, pool):
    assert pool_of(entry(name, category, height)) == pool


def test_hanging_and_standing_lamps_are_different_pools():
    assert pool_of(entry("Lamp", "Lights", 0.6, elevation=1.87)) == "lamp.pendant"
    assert pool_of(entry("Lamp", "Lights", 0.6)) == "lamp.table"


def test_every_rule_names_a_class():
    assert {class_of(rule.pool) for rule in RULES} <= set(CLASSES)


def test_splits_are_disjoint_per_pool_and_deterministic():
    pools = {"chair.dining": [f"c{i}" for i in range(20)], "prop.bath": ["a", "b", "c"], "lamp.table": ["x", "y"]}
    split = split_keys(pools)
    assert split == split_keys({name: list(reversed(keys)) for name, keys in pools.items()})
    assert {split[key] for key in pools["prop.bath"]} == {"train", "val", "test"}
    assert {split[key] for key in pools["lamp.table"]} == {"train", "test"}
    counts = [sum(split[key] == name for key in pools["chair.dining"]) for name in ("train", "val", "test")]
    assert counts == [12, 4, 4]


def test_attribution_names_author_title_and_licence():
    text = attribution([entry("Chair")])
    assert "| `demo--x` | Chair | someone |" in text
    assert LICENCES["Scopia"].url in text
    assert LICENCES["Scopia"].credit in text
    assert "modified" in text
