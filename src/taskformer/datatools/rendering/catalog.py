"""Furniture catalogues: which models exist, what they are, who made them and which split may show them.

The catalogues are the ``*.sh3f`` zip files of the Debian package ``sweethome3d-furniture``. Each holds one
``PluginFurnitureCatalog.properties`` (Latin-1, ``key#number=value``) beside the OBJ models it describes. Nothing is
ever extracted to disk: members are read by name from the open zip, so a hostile member path cannot leave it.
"""

from __future__ import annotations

import hashlib
import re
import zipfile
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from taskformer.errors import CorruptFileError, DatasetNotFoundError

SPLITS: tuple[str, ...] = ("train", "val", "test")

PROPERTIES = "PluginFurnitureCatalog.properties"
MAX_PROPERTIES_BYTES = 4_000_000

_ADVICE = "run apt-get install sweethome3d-furniture, or give the folder that holds its *.sh3f files as `furniture`"


@dataclass(frozen=True)
class Licence:
    """The licence of one catalogue file and the credit that it asks for."""

    name: str
    url: str
    credit: str


_BY_3 = ("CC BY 3.0", "https://creativecommons.org/licenses/by/3.0/")
_BY_3_US = ("CC BY 3.0 US", "https://creativecommons.org/licenses/by/3.0/us/")
LICENCES: dict[str, Licence] = {
    "BlendSwap-CC-0": Licence(
        "CC0 1.0", "https://creativecommons.org/publicdomain/zero/1.0/", "authors on www.blendswap.com"
    ),
    "BlendSwap-CC-BY": Licence(*_BY_3, "the author named, on www.blendswap.com"),
    "KatorLegaz": Licence(*_BY_3_US, "Andrew Kator & Jennifer Legaz"),
    "Reallusion": Licence(*_BY_3_US, "Reallusion, www.reallusion.com"),
    "Scopia": Licence(*_BY_3, "Emmanuel Puybaret / eTeks and Scopia Visual Interfaces Systems, s.l., www.scopia.es"),
}
"""Licence by catalogue file name without its suffix. A catalogue that is not listed here is not used."""


@dataclass(frozen=True)
class Entry:
    """One model of a catalogue.

    Attributes:
        key: Unique, file-system safe name such as ``scopia--bathroom3``.
        name: English display name.
        category: English category of the catalogue.
        catalog: Catalogue file name without suffix, a key of `LICENCES`.
        creator: Author as the catalogue writes it.
        member: Path of the OBJ file inside the zip.
        size: Width, depth, height in metres, of the model standing with its front to the viewer.
        elevation: Height above the floor in metres at which the model hangs; 0 for standing ones.
        top: Height in metres above the model's foot on which things can be put.
        rotation: Row-major 3x3 matrix to apply to the vertices first, or None.
    """

    key: str
    name: str
    category: str
    catalog: str
    creator: str
    member: str
    size: tuple[float, float, float]
    elevation: float = 0.0
    top: float = 0.0
    rotation: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Rule:
    """First matching rule wins: full-match pattern on the name, optional limits on category and height (metres)."""

    pool: str
    pattern: str
    category: str = ""
    low: float = 0.0
    high: float = 9.0

    def matches(self, entry: Entry) -> bool:
        """Whether the rule applies to ``entry``."""
        return (
            re.fullmatch(self.pattern, entry.name, re.IGNORECASE) is not None
            and re.fullmatch(self.category or ".*", entry.category) is not None
            and self.low <= entry.size[2] < self.high
        )


# A pool is "class.role": what the thing is, and where the layout may put it. Names that no rule knows are not used:
# the catalogues also hold trucks, trees and light switches.
RULES: tuple[Rule, ...] = (
    Rule("person.standing", r"(holding )?(fe)?male|boy|girl", "Characters", 1.45),
    Rule("person.mannequin", r"mannequin (fe)?male", "Characters"),
    Rule("person.floor", r"sitting (fe)?male|sitting (girl|boy)", "Characters", 0.0, 1.0),
    Rule("person.lying", r"lying down (fe)?male|lying down boy", "Characters"),
    Rule("door.door", r"door|double door.*|exterior door|glass door", "Doors and windows"),
    Rule("window.window", r".*window.*(?<!shutter)(?<!blind)", "Doors and windows"),
    Rule("bed.child", r"child bed|baby bed|crib"),
    Rule("bed.bed", r"bed|iron bed|hospital bed|captain's bed|day bed|opened convertible sofa bz|bunk bed"),
    Rule("sofa.sofa", r"(?!contemporary).*(sofa|couch)( .*)?"),
    Rule("chair.child", r"child(ren)? chair|baby high chair"),
    Rule("chair.office", r"chair|armchair|class seat", "Office"),
    Rule("chair.armchair", r".*armchair.*|puff", "Living room|Exterior"),
    Rule("chair.stool", r"stool|bar stool|bar chair|piano bench|bench", "Living room|Kitchen"),
    Rule("chair.dining", r"(?!deck|beach|wheel|relax).*chair( .*)?", "Living room|Exterior", 0.7, 1.25),
    Rule("table.desk", r"desk|desk table|wooden desk|workbench|technical table"),
    Rule("table.desk", r"wooden .*table", "Office"),
    Rule("table.coffee", r"coffee table|table|rattan table|children table", "Living room|Exterior", 0.3, 0.6),
    Rule(
        "table.dining", r"(?!bedside|pool|football|changing|dressing).*table( on trestles)?", "Living room", 0.6, 0.95
    ),
    Rule("table.small", r"table with tablecloth|bar table|cafe table"),
    Rule("table.desk", r"dressing table|changing table"),
    Rule("cabinet.low", r"bedside table|tv stand|dresser with drawers|chest|filing cabinet|safe", "", 0.4, 1.3),
    Rule("cabinet.wardrobe", r"wardrobe|cupboard|high cabinet|television cabinet", "Bedroom|Living room", 1.3),
    Rule("cabinet.tall", r"high cabinet", "Kitchen"),
    Rule("cabinet.island", r"island( extension)?", "Kitchen"),
    Rule("cabinet.upper", r".*upper.* cabinet|glass door cabinet", "Kitchen"),
    Rule("cabinet.lower", r"((small )?lower|drawers|sink) cabinet|sink", "Kitchen"),
    Rule("cabinet.vanity", r"(double )?vanity", "Bathroom"),
    Rule("shelf.shelf", r"(full )?bookcase|(vertical )?shelves", "", 0.9),
    Rule(
        "lamp.pendant",
        r"hanging light|chandelier lamp|pendant lamp|lamp|ceiling lamp|fluorescent light",
        "Lights",
        0.02,
    ),
    Rule("plant.floor", r".*(plant|ficus|yucca|spathiphyllum|bush)|christmas tree", "Living room|Exterior", 0.55, 2.1),
    Rule(
        "plant.small",
        r".*plant|cactus|orchids|tulips|white lily|bamboo|flowers|flower box|bonsai tree|christmas tree",
        "",
        0.1,
        0.7,
    ),
    Rule("appliance.fridge", r"(large )?fridge|refrigerator|chest freezer"),
    Rule("appliance.range", r"(double )?oven|large stove|propane stove", "Kitchen", 0.55),
    Rule("appliance.washer", r"(clothes )?washing machine|dryer machine"),
    Rule("appliance.hood", r"(range )?hood", "Kitchen"),
    Rule("appliance.cooler", r"water cooler"),
    Rule("appliance.tv", r"tv( 16:9)?|wall flat tv", "Living room"),
    Rule("appliance.computer", r"laptop|apple (ibook|imac.*)|inkjet.*|small oven", "Office"),
    Rule("appliance.counter", r"microwave|coffee (machine|maker|brewer|press)|toaster|mixer|blender|boiler|small oven"),
    Rule("appliance.counter", r"deep fryer|espresso kettle|sandwich maker|cooker|electronic scale", "Kitchen", 0.1),
    Rule("appliance.small", r"radio|speaker|table fan|rigged fan|mini stereo|stereo amplifier|mp3 base|phone"),
    Rule("prop.bath", r"bath|corner bathtub|island bath|shower stall", "Bathroom"),
    Rule("prop.toilet", r"toilets unit|bidet", "Bathroom"),
    Rule("prop.basin", r"washbasin", "Bathroom"),
    Rule("prop.towel", r"towel rack|towel", "Bathroom|Kitchen"),
    Rule("prop.radiator", r"radiator"),
    Rule("prop.big", r"(upright|grand) piano|fireplace|aquarium|indoor bike|treadmill", "", 0.9, 1.8),
    Rule("prop.big", r"clothes (horse|rack)|rocking horse|doll house|stroller|electric guitar|flipper"),
    Rule("prop.pet", r"cat|dog|bulldog|siamese cat|rabbit", "Characters"),
    Rule(
        "prop.floor",
        r"dustbin|clothes basket|.*cardboard box|trunck|crate|bullet trash can|recycling bin|vase",
        "",
        0.24,
    ),
    Rule(
        "prop.floor", r"basketball|soccer ball|suitcase|backpack|shopping basket|handbag|potty|umbrella", "", 0.2, 0.9
    ),
    Rule("prop.bedroom", r"teddy bear|doll|hat|folded clothes|toy train|clock|wood toy|helmet|puzzle|car model|gift"),
    Rule(
        "prop.kitchen", r"bowl.*|knife stand|bread( box)?|wine bottle|old jar|pottery|spice tower|utensils pot|tea ?pot"
    ),
    Rule("prop.kitchen", r"milk|apples|coffee (cup|mug)|paper towel holder|birthday cake|roasted chicken|oil servers"),
    Rule("prop.bathroom", r"bottle|medicine bottle|flacon|cosmetics pot|soap|sponge|towel", "Bathroom"),
    Rule("prop.office", r"letter tray|penbox|frame.*|calendar|book|newspaper|video projector|headphones|reflex camera"),
    Rule("prop.living", r"vase|frame.*|chessboard|aquarium|deer|old jar|bowl with fruits|candle", "", 0.05),
    Rule("lamp.table", r"(desk |little )?lamp|pedestal vase lamp|candle|japanese lantern", "Lights"),
)


def pool_of(entry: Entry) -> str | None:
    """Pool ``class.role`` of a catalogue entry, or None when the layout has no use for it."""
    for rule in RULES:
        # Standing and hanging lamps share names; only the height at which they hang tells them apart.
        if rule.matches(entry) and (rule.pool != "lamp.pendant" or entry.elevation > 1.2):
            return rule.pool
    return None


def class_of(pool: str) -> str:
    """Semantic class name of a pool."""
    return pool.split(".", 1)[0]


def parse_properties(text: str) -> list[dict[str, str]]:
    r"""Parse the numbered records of a ``.properties`` text.

    Args:
        text: File content; backslash-newline continues a line and ``\uXXXX`` stands for a character.

    Returns:
        One mapping key -> value per number, in ascending order of the number.
    """
    text = re.sub(r"\\\r?\n\s*", "", text)
    records: dict[int, dict[str, str]] = defaultdict(dict)
    for line in text.splitlines():
        match = re.match(r"\s*(\w+)#(\d+)\s*=\s*(.*)", line)
        if match:
            value = re.sub(r"\\u([0-9a-fA-F]{4})", lambda code: chr(int(code[1], 16)), match[3])
            records[int(match[2])][match[1]] = value.strip()
    return [records[number] for number in sorted(records)]


def _metres(record: dict[str, str], field: str) -> float:
    return float(record.get(field) or 0.0) / 100.0


def _entry(record: dict[str, str], catalog: str) -> Entry:
    member = record["model"].lstrip("/")
    folder, stem = Path(member).parts[0], Path(member).stem
    rotation = record.get("modelRotation")
    size = (_metres(record, "width"), _metres(record, "depth"), _metres(record, "height"))
    top = _metres(record, "dropOnTopElevation")
    return Entry(
        key=re.sub(r"[^a-z0-9-]+", "-", f"{folder}--{stem}".lower()),
        name=record["name"],
        category=record.get("category", ""),
        catalog=catalog,
        creator=record.get("creator", "unknown"),
        member=member,
        size=size,
        elevation=_metres(record, "elevation"),
        top=top if top > 0.02 else size[2],
        rotation=tuple(float(x) for x in rotation.split()) if rotation else None,
    )


def read_catalog(furniture: Path) -> list[Entry]:
    """Read every licensed catalogue in a folder.

    Args:
        furniture: Folder with the ``*.sh3f`` files.

    Returns:
        All entries, sorted by key; keys are unique.

    Raises:
        DatasetNotFoundError: If the folder holds no known catalogue.
        CorruptFileError: If a catalogue lacks its table of contents or the table is absurdly large.
    """
    paths = sorted(path for path in Path(furniture).glob("*.sh3f") if path.stem in LICENCES)
    if not paths:
        msg = f"{str(furniture)!r} holds no furniture catalogue ({', '.join(LICENCES)}; *.sh3f); {_ADVICE}"
        raise DatasetNotFoundError(msg)
    entries: dict[str, Entry] = {}
    for path in paths:
        for record in parse_properties(_read_properties(path)):
            if record.get("model", "").lower().endswith(".obj") and "name" in record:
                entry = _entry(record, path.stem)
                entries.setdefault(entry.key, entry)
    return [entries[key] for key in sorted(entries)]


def _read_properties(path: Path) -> str:
    with zipfile.ZipFile(path) as archive:
        if PROPERTIES not in archive.namelist():
            msg = f"{str(path)!r} holds no {PROPERTIES}, so it is not a furniture catalogue; {_ADVICE}"
            raise CorruptFileError(msg)
        if archive.getinfo(PROPERTIES).file_size > MAX_PROPERTIES_BYTES:
            msg = f"{PROPERTIES} in {str(path)!r} is larger than {MAX_PROPERTIES_BYTES} bytes, about 150 kB are usual"
            raise CorruptFileError(msg)
        return archive.read(PROPERTIES).decode("latin-1")


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def split_keys(keys_by_pool: Mapping[str, Sequence[str]], held_out: float = 0.2) -> dict[str, str]:
    """Assign every model to one split, pool by pool, by a hash of its key.

    A pool of three or more models gives at least one to each split; smaller pools go to train first, then test.

    Args:
        keys_by_pool: Model keys by pool.
        held_out: Share of a pool for val, and again for test.

    Returns:
        Split name by model key.
    """
    split: dict[str, str] = {}
    for keys in keys_by_pool.values():
        order = sorted(keys, key=_hash)
        count = max(1, round(held_out * len(order))) if len(order) >= 3 else 0
        for position, key in enumerate(order):
            if position < count:
                split[key] = "val"
            elif position < 2 * count or (len(order) == 2 and position == 1):
                split[key] = "test"
            else:
                split[key] = "train"
    return split


def attribution(entries: Iterable[Entry]) -> str:
    """Markdown text that credits the author of every model shown in a rendered data set."""
    by_catalog: dict[str, list[Entry]] = defaultdict(list)
    for entry in entries:
        by_catalog[entry.catalog].append(entry)
    lines = [
        "# Attribution",
        "",
        "The images and label maps in this folder are renderings. They show the 3D models listed below, taken from the",
        "Sweet Home 3D furniture collections (https://www.sweethome3d.com/importModels.jsp) and modified: rescaled to",
        "their catalogue size, split by material, normals recomputed, some colours changed, then rendered in a scene.",
        "The authors do not endorse this work. Walls, floors, curtains, rugs, pictures, cushions, boxes, books and",
        "some lamps and plants are generated by the renderer and need no credit.",
    ]
    for catalog in sorted(by_catalog):
        licence = LICENCES[catalog]
        lines += ["", f"## {catalog}", "", f"Licence: [{licence.name}]({licence.url}). Credit: {licence.credit}.", ""]
        lines += ["| Model | Title | Author |", "|---|---|---|"]
        for entry in sorted(by_catalog[catalog], key=lambda item: item.key):
            lines.append(f"| `{entry.key}` | {entry.name} | {entry.creator} |")
    return "\n".join(lines) + "\n"
