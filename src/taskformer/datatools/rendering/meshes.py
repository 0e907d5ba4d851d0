"""Furniture models as one binary PLY file per material, sized in metres and cached on disk.

A catalogue model is an OBJ file in arbitrary units with its own MTL file. `convert` scales it to the catalogue's box,
turns it z-up with its front to -y, recomputes the normals with a crease angle and splits it by material, because the
renderer's readers know one material per file. Conversion happens once; later runs read the cache.
"""

from __future__ import annotations

import io
import json
import posixpath
import shutil
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from taskformer.datatools.rendering.catalog import Entry
from taskformer.errors import CorruptFileError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

CACHE_VERSION = 1
CREASE_DEG = 35.0
MAX_TRIANGLES = 60_000
MAX_MEMBER_BYTES = 100_000_000
TEXTURE_PX = 256
WELD_M = 1e-5
GREY = (0.6, 0.6, 0.6)


@dataclass(frozen=True)
class Part:
    """One material of a model.

    Attributes:
        ply: Path of the mesh, relative to the cache folder.
        color: Diffuse sRGB colour in 0..1, used where there is no texture.
        texture: Path of an RGB texture, relative to the cache folder, or None.
        glass: Whether the material is mostly transparent.
        area: Surface in square metres.
    """

    ply: str
    color: tuple[float, float, float] = GREY
    texture: str | None = None
    glass: bool = False
    area: float = 0.0


@dataclass(frozen=True)
class Model:
    """A converted model, ready to be placed.

    Its frame: origin on the floor under the middle of its box, x to the right, y backwards, z up, front towards -y.

    Attributes:
        key: Key of the catalogue entry.
        name: English name.
        pool: ``class.role``.
        size: Width, depth, height in metres.
        elevation: Height above the floor in metres at which the model hangs.
        top: Height in metres on which things can be put.
        brightness: Area-weighted mean sRGB value in 0..1.
        triangles: Number of triangles.
        parts: Its materials.
    """

    key: str
    name: str
    pool: str
    size: tuple[float, float, float]
    elevation: float = 0.0
    top: float = 0.0
    brightness: float = 0.5
    triangles: int = 0
    parts: tuple[Part, ...] = ()


@dataclass
class Material:
    """What an MTL file says about one material and the renderer can use."""

    color: tuple[float, float, float] = GREY
    opacity: float = 1.0
    texture: str | None = None


@dataclass
class ObjMesh:
    """Triangles of an OBJ file.

    Attributes:
        vertices: ``(V, 3)`` positions as written.
        uvs: ``(T, 2)`` texture coordinates.
        faces: Material name -> ``(F, 3, 2)`` indices into vertices and uvs; -1 = no uv.
    """

    vertices: Floats
    uvs: Floats
    faces: dict[str, Ints] = field(default_factory=dict)


def parse_obj(text: str) -> ObjMesh:
    """Parse an OBJ file; polygons become fans of triangles, file normals are ignored.

    Raises:
        CorruptFileError: If the file holds no face.
    """
    vertices: list[list[float]] = []
    uvs: list[list[float]] = []
    faces: dict[str, list[list[tuple[int, int]]]] = {}
    material = ""
    for line in text.splitlines():
        words = line.split()
        if not words:
            continue
        if words[0] == "v":
            vertices.append([float(x) for x in words[1:4]])
        elif words[0] == "vt":
            uvs.append([float(x) for x in words[1:3]])
        elif words[0] == "usemtl":
            material = " ".join(words[1:])
        elif words[0] == "f":
            corners = [_corner(word, len(vertices), len(uvs)) for word in words[1:]]
            fan = faces.setdefault(material, [])
            fan.extend([corners[0], corners[i], corners[i + 1]] for i in range(1, len(corners) - 1))
    triangles = {name: np.array(fan, dtype=np.int64) for name, fan in faces.items() if fan}
    if not triangles or not vertices:
        msg = "the OBJ file holds no face; expected at least one triangle"
        raise CorruptFileError(msg)
    uv_array = np.array(uvs, dtype=np.float64) if uvs else np.zeros((0, 2))
    return ObjMesh(np.array(vertices, dtype=np.float64), uv_array, triangles)


def _corner(word: str, n_vertices: int, n_uvs: int) -> tuple[int, int]:
    """Zero-based vertex and uv index of ``v/vt/vn``; negative numbers count from the end."""
    fields = word.split("/")
    vertex = int(fields[0])
    uv = int(fields[1]) if len(fields) > 1 and fields[1] else 0
    return (
        vertex - 1 if vertex > 0 else n_vertices + vertex,
        uv - 1 if uv > 0 else (n_uvs + uv if uv < 0 else -1),
    )


def parse_mtl(text: str) -> dict[str, Material]:
    """Parse the materials of an MTL file; unknown statements are skipped."""
    materials: dict[str, Material] = {}
    current = Material()
    for line in text.splitlines():
        words = line.split()
        if len(words) < 2:
            continue
        name = words[0].lower()
        if name == "newmtl":
            current = materials.setdefault(" ".join(words[1:]), Material())
        elif name == "kd" and len(words) >= 4:
            current.color = (float(words[1]), float(words[2]), float(words[3]))
        elif name == "d":
            current.opacity = float(words[-1])
        elif name == "map_kd":
            current.texture = words[-1] if words[1].startswith("-") else " ".join(words[1:])
    return materials


def to_model_frame(vertices: Floats, used: Ints, entry: Entry) -> Floats:
    """Vertices in metres in the model frame, filling exactly the catalogue's box.

    Args:
        vertices: ``(V, 3)`` in file units, y up, front towards +z.
        used: Indices of the vertices that faces use; others do not count for the box.
        entry: The catalogue entry with size and rotation.

    Returns:
        ``(V, 3)`` positions, z up, front towards -y, lowest point at z = 0.
    """
    if entry.rotation is not None:
        vertices = vertices @ np.array(entry.rotation, dtype=np.float64).reshape(3, 3).T
    low, high = vertices[used].min(0), vertices[used].max(0)
    width, depth, height = entry.size
    # Every axis is scaled by itself: units differ between authors, the catalogue's sizes do not.
    scale = np.array([width, height, depth]) / np.maximum(high - low, 1e-9)
    origin = np.array([(low[0] + high[0]) / 2, low[1], (low[2] + high[2]) / 2])
    scaled = (vertices - origin) * scale
    return np.stack([scaled[:, 0], -scaled[:, 2], scaled[:, 1]], axis=1)


def crease_normals(welded: Ints, face_normals: Floats, areas: Floats, angle_deg: float = CREASE_DEG) -> Floats:
    """Normal of each corner: the area-weighted mean of the faces around its vertex that bend less than an angle.

    Args:
        welded: ``(F, 3)`` vertex ids, equal where positions are equal.
        face_normals: ``(F, 3)`` unit normals.
        areas: ``(F,)`` weights.
        angle_deg: Crease angle in degrees.

    Returns:
        ``(F, 3, 3)`` unit normals per face and corner.
    """
    count = len(welded)
    face_of_corner = np.repeat(np.arange(count), 3)
    order = np.argsort(welded.ravel(), kind="stable")
    sorted_ids = welded.ravel()[order]
    sorted_faces = face_of_corner[order]
    starts = np.r_[0, np.flatnonzero(np.diff(sorted_ids)) + 1]
    sizes = np.diff(np.r_[starts, len(sorted_ids)])
    first, size = np.repeat(starts, sizes), np.repeat(sizes, sizes)
    own = face_normals[sorted_faces]
    total = np.zeros((3 * count, 3))
    limit = np.cos(np.radians(angle_deg))
    # Step k adds the k-th face around every vertex; 64 is far beyond any sensible fan.
    for k in range(min(int(sizes.max()), 64)):
        inside = k < size
        other = sorted_faces[np.where(inside, first + k, 0)]
        smooth = inside & ((own * face_normals[other]).sum(1) >= limit)
        total += (face_normals[other] * areas[other, None]) * smooth[:, None]
    normals = np.empty_like(total)
    length = np.linalg.norm(total, axis=1, keepdims=True)
    normals[order] = np.where(length > 1e-20, total / np.maximum(length, 1e-20), own)
    return normals.reshape(count, 3, 3)


def write_ply(path: Path, positions: Floats, normals: Floats, uvs: Floats) -> None:
    """Write triangles as a binary PLY file with shared vertices.

    Args:
        path: File to write.
        positions: ``(F, 3, 3)`` corner positions in metres.
        normals: ``(F, 3, 3)`` corner normals.
        uvs: ``(F, 3, 2)`` corner texture coordinates.
    """
    names = ("x", "y", "z", "nx", "ny", "nz", "u", "v")
    rows = np.concatenate([positions, normals, uvs], axis=-1).reshape(-1, 8).astype("<f4")
    unique, index = np.unique(rows, axis=0, return_inverse=True)
    faces = np.zeros(len(positions), dtype=[("count", "u1"), ("index", "<i4", 3)])
    faces["count"] = 3
    faces["index"] = index.reshape(-1, 3)
    header = ["ply", "format binary_little_endian 1.0", f"element vertex {len(unique)}"]
    header += [f"property float {name}" for name in names]
    header += [f"element face {len(faces)}", "property list uchar int vertex_indices", "end_header"]
    with path.open("wb") as handle:
        handle.write(("\n".join(header) + "\n").encode())
        handle.write(unique.tobytes())
        handle.write(faces.tobytes())


def write_mesh(path: Path, positions: Floats, uvs: Floats | None = None) -> float:
    """Write triangles with crease normals.

    Args:
        path: File to write.
        positions: ``(F, 3, 3)`` corner positions in metres.
        uvs: ``(F, 3, 2)`` texture coordinates, zero when None.

    Returns:
        The surface in square metres.
    """
    cross = np.cross(positions[:, 1] - positions[:, 0], positions[:, 2] - positions[:, 0])
    length = np.linalg.norm(cross, axis=1)
    keep = length > 1e-12
    positions, cross, length = positions[keep], cross[keep], length[keep]
    uvs = np.zeros((*positions.shape[:2], 2)) if uvs is None else uvs[keep]
    keys = np.round(positions.reshape(-1, 3) / WELD_M).astype(np.int64)
    welded = np.unique(keys, axis=0, return_inverse=True)[1].reshape(-1, 3)
    write_ply(path, positions, crease_normals(welded, cross / length[:, None], length), uvs)
    return float(length.sum() / 2)


class Archive:
    """Members of one catalogue zip, read by exact name; nothing is extracted, so no path can escape."""

    def __init__(self, path: Path) -> None:
        self._zip = zipfile.ZipFile(path)
        self._by_basename = {name.lower(): name for name in self._zip.namelist()}

    def read(self, name: str) -> bytes | None:
        """Content of a member, or None when it is missing or unreasonably large."""
        real = self._by_basename.get(posixpath.normpath(name.replace("\\", "/")).lower())
        if real is None or self._zip.getinfo(real).file_size > MAX_MEMBER_BYTES:
            return None
        return self._zip.read(real)

    def near(self, member: str, name: str) -> bytes | None:
        """Content of the file that an OBJ or MTL file mentions: as written, else its base name beside the model."""
        folder = posixpath.dirname(member)
        name = name.replace("\\", "/")
        return self.read(posixpath.join(folder, name)) or self.read(posixpath.join(folder, posixpath.basename(name)))

    def close(self) -> None:
        """Close the zip."""
        self._zip.close()


def _materials(archive: Archive, entry: Entry, obj_text: str) -> dict[str, Material]:
    for line in obj_text.splitlines():
        if line.startswith("mtllib"):
            data = archive.near(entry.member, line[6:].strip())
            if data is not None:
                return parse_mtl(data.decode("latin-1"))
    return {}


def _save_texture(archive: Archive, entry: Entry, name: str, path: Path) -> float | None:
    """Write a small RGB copy of a texture; returns its mean sRGB value, None when it cannot be read."""
    data = archive.near(entry.member, name)
    if data is None:
        return None
    try:
        with Image.open(io.BytesIO(data)) as opened:
            image = opened.convert("RGB")
    except (UnidentifiedImageError, OSError, ValueError):
        return None
    image.thumbnail((TEXTURE_PX, TEXTURE_PX))
    image.save(path)
    return float(np.asarray(image).mean() / 255.0)


def convert(entry: Entry, pool: str, archive: Archive, cache: Path) -> Model | None:
    """Convert one model into the cache, or read it from there.

    Args:
        entry: The catalogue entry.
        pool: Its pool.
        archive: The open catalogue zip that holds it.
        cache: Cache folder.

    Returns:
        The model; None when it has too many triangles or its file cannot be used.
    """
    folder = cache / entry.key
    record = folder / "model.json"
    if not record.exists():
        cache.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=".model-", dir=cache))
        try:
            (work / "model.json").write_text(json.dumps(_convert(entry, archive, work)))
            # Two workers may convert the same model; the first rename wins and the other result is dropped.
            if not folder.exists():
                work.replace(folder)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    data = json.loads(record.read_text())
    if data.get("version") != CACHE_VERSION or data["triangles"] == 0 or data["triangles"] > MAX_TRIANGLES:
        return None
    parts = tuple(Part(**{**part, "color": tuple(part["color"])}) for part in data["parts"])
    return Model(
        key=entry.key,
        name=entry.name,
        pool=pool,
        size=entry.size,
        elevation=entry.elevation,
        top=min(entry.top, entry.size[2]),
        brightness=data["brightness"],
        triangles=data["triangles"],
        parts=parts,
    )


def _convert(entry: Entry, archive: Archive, folder: Path) -> dict[str, object]:
    unusable: dict[str, object] = {"version": CACHE_VERSION, "triangles": 0, "brightness": 0.0, "parts": []}
    data = archive.read(entry.member)
    if data is None:
        return unusable
    text = data.decode("latin-1")
    try:
        mesh = parse_obj(text)
    except (ValueError, IndexError):
        return unusable
    count = sum(len(faces) for faces in mesh.faces.values())
    if count > MAX_TRIANGLES:
        return {**unusable, "triangles": count}
    corners = np.concatenate([faces[:, :, 0].ravel() for faces in mesh.faces.values()])
    vertices = to_model_frame(mesh.vertices, np.unique(corners), entry)
    materials = _materials(archive, entry, text)
    parts: list[Part] = []
    values: list[float] = []
    for index, (name, faces) in enumerate(mesh.faces.items()):
        material = materials.get(name, Material())
        uvs = mesh.uvs[faces[:, :, 1]] if len(mesh.uvs) and (faces[:, :, 1] >= 0).all() else None
        area = write_mesh(folder / f"{index}.ply", vertices[faces[:, :, 0]], uvs)
        if area < 1e-9:
            continue
        value: float | None = None
        if material.texture and uvs is not None:
            value = _save_texture(archive, entry, material.texture, folder / f"{index}.png")
        color = material.color
        values.append(float(np.mean(color)) if value is None else value)
        texture = None if value is None else f"{entry.key}/{index}.png"
        parts.append(Part(f"{entry.key}/{index}.ply", color, texture, material.opacity < 0.6, area))
    weights = [part.area for part in parts]
    brightness = float(np.average(values, weights=weights)) if parts else 0.0
    return {**unusable, "triangles": count, "brightness": brightness, "parts": [asdict(part) for part in parts]}


def convert_all(entries: Sequence[tuple[Entry, str]], furniture: Path, cache: Path) -> list[Model]:
    """Convert many models, opening each catalogue once.

    Args:
        entries: Pairs of catalogue entry and pool.
        furniture: Folder with the ``*.sh3f`` files.
        cache: Cache folder.

    Returns:
        The usable models in the order of ``entries``.
    """
    archives: dict[str, Archive] = {}
    models: list[Model] = []
    try:
        for entry, pool in entries:
            if entry.catalog not in archives:
                archives[entry.catalog] = Archive(furniture / f"{entry.catalog}.sh3f")
            model = convert(entry, pool, archives[entry.catalog], cache)
            if model is not None:
                models.append(model)
    finally:
        for archive in archives.values():
            archive.close()
    return models
