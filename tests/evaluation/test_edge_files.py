"""Files of edges, as MATLAB and the Berkeley benchmark have them."""

import re

import numpy as np
import pytest
import scipy.io
from PIL import Image
from scipy.sparse import csc_matrix as csc

from taskformer.errors import CorruptFileError
from taskformer.evaluation import evaluate_edges
from taskformer.evaluation.edge_files import read_truths


def column(place, size=(24, 32)):
    """A map with one column of edges."""
    edge = np.zeros(size, bool)
    edge[:, place] = True
    return edge


def annotators(count=2):
    """Edges of a 24x32 image by some annotators, each a column of its own."""
    return [column(5 + k) for k in range(count)]


def cells(items):
    cell = np.empty((1, len(items)), object)
    cell[0, :] = items
    return cell


def struct_array(items):
    return np.array([[(item, 0) for item in items]], dtype=[("Boundaries", object), ("Segmentation", object)])


def hdf5(path, drawn, kind):
    """Write a file as MATLAB's -v7.3 does: columns first, cells and arrays of structs as references."""
    h5py = pytest.importorskip("h5py", reason="h5py is not installed")
    with h5py.File(path, "w", userblock_size=512) as file:
        refs = file.create_group("#refs#")
        arrays = [refs.create_dataset(str(k), data=edge.T.astype(np.uint8)) for k, edge in enumerate(drawn)]
        if kind == "plain":
            file["groundTruth"] = drawn[0].T.astype(np.uint8)
        elif kind == "cell of structs":
            groups = [refs.create_group(f"struct{k}") for k in range(len(drawn))]
            for group, array in zip(groups, arrays, strict=True):
                group["Boundaries"] = array
                group["Segmentation"] = np.ones((32, 24))
            references = [[group.ref] for group in groups]
            file.create_dataset("groundTruth", data=references, dtype=h5py.ref_dtype)
        elif kind == "struct array":
            struct = file.create_group("groundTruth")
            struct.create_dataset("Boundaries", data=[[array.ref] for array in arrays], dtype=h5py.ref_dtype)
        else:
            file.create_group("groundTruth")["Boundaries"] = drawn[0].T.astype(np.uint8)
    content = path.read_bytes()
    path.write_bytes(b"MATLAB 7.3 MAT-file".ljust(512) + content[512:])


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize(
    ("variable", "drawn", "count"),
    [
        ("groundTruth", lambda edges: cells([{"Boundaries": edge, "Segmentation": 1} for edge in edges]), 1),
        ("groundTruth", lambda edges: cells([{"Boundaries": edge, "Segmentation": 1} for edge in edges]), 2),
        ("groundTruth", lambda edges: cells([{"Boundaries": edge} for edge in edges]).T, 3),
        ("groundTruth", struct_array, 1),
        ("groundTruth", struct_array, 2),
        ("groundTruth", cells, 2),
        ("groundTruth", lambda edges: edges[0] * 255.0, 1),
        ("Boundaries", lambda edges: edges[0], 1),
        ("edge", lambda edges: edges[0], 1),
    ],
)
def test_true_edges_come_as_cells_structs_or_arrays(variable, drawn, count, sparse, tmp_path):
    edges = annotators(count)
    path = tmp_path / "a.mat"
    scipy.io.savemat(path, {variable: drawn([csc(edge) for edge in edges] if sparse else edges)})
    np.testing.assert_array_equal(read_truths(path), edges)


@pytest.mark.parametrize(
    ("kind", "count"),
    [("plain", 1), ("cell of structs", 1), ("cell of structs", 3), ("struct array", 2), ("struct", 1)],
)
def test_true_edges_of_matlab_7_3(kind, count, tmp_path):
    edges = annotators(count)
    path = tmp_path / "a.mat"
    hdf5(path, edges, kind)
    np.testing.assert_array_equal(read_truths(path), edges)


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"LabelMap": np.ones((24, 32))}, "does not hold groundTruth{k}.Boundaries as BSDS has it, nor one array of"),
        ({"groundTruth": cells([{"Segmentation": np.ones((24, 32))}])}, "does not hold groundTruth{k}.Boundaries"),
        ({"groundTruth": np.zeros((0, 0))}, "of 0 and one other value"),
        (
            {"groundTruth": np.arange(768.0).reshape(24, 32)},
            "of 0 and one other value, got float64 of shape (24, 32)",
        ),
        ({"groundTruth": np.ones((24, 32))}, "of 0 and one other value"),
        ({"edges": np.zeros((24, 32, 2))}, "of shape (24, 32, 2)"),
        ({"groundTruth": "none"}, "of 0 and one other value, got <U4"),
    ],
)
def test_what_is_no_map_of_edges_is_named(variables, message, tmp_path):
    path = tmp_path / "a.mat"
    scipy.io.savemat(path, variables)
    with pytest.raises(CorruptFileError, match=re.escape(message)):
        read_truths(path)


def test_a_truncated_file_of_matlab_7_3_is_named(tmp_path):
    path = tmp_path / "a.mat"
    hdf5(path, annotators(2), "cell of structs")
    path.write_bytes(path.read_bytes()[:1500])
    with pytest.raises(CorruptFileError, match=r"a.mat \(1500 bytes\) cannot be read as a MATLAB 7.3 file"):
        read_truths(path)


@pytest.mark.parametrize("kind", ["cell of structs", "struct array"])
def test_annotators_of_any_form_score_the_same(kind, tmp_path):
    pred, truth = tmp_path / "pred", tmp_path / "gt"
    pred.mkdir()
    truth.mkdir()
    Image.fromarray(column(6).astype(np.uint8) * 200).save(pred / "a.png")
    edges = annotators(2)
    scipy.io.savemat(truth / "a.mat", {"groundTruth": cells([{"Boundaries": edge} for edge in edges])})
    expected = evaluate_edges(pred, truth, thresholds=3, workers=0).as_dict()
    hdf5(truth / "a.mat", edges, kind)
    found = evaluate_edges(pred, truth, thresholds=3, workers=0).as_dict()
    assert found["thresholds"] == expected["thresholds"]
    assert found["thresholds"][0]["true"] == 48
