"""What a search writes, against counting, brute force and the studies that the numbers came from."""

import csv
import json
from itertools import product
from random import Random

import pytest
from optuna.trial import TrialState
from PIL import Image

from taskformer.cli import main
from taskformer.errors import ConfigError
from taskformer.models.autotaskformer import Architecture, SearchSpace
from taskformer.modules.quantities import describe, unit_of
from taskformer.search.drawings import draw_architecture
from taskformer.search.objectives import Candidate, Objective
from taskformer.search.results import SearchResult, load_search, pick, write_results
from taskformer.search.storage import open_storage
from taskformer.search.study import Key, Record, SearchStudy
from taskformer.tasks import build_tasks

SPACE = SearchSpace((8, 16), (2, 3), (2.0, 4.0), (1, 2), num_tasks=2, sharing="binary")
OBJECTIVES = [Objective("delta_m", "maximize"), Objective("params", "minimize")]


def record(origin, generation, slot, values, state=TrialState.COMPLETE, architecture=None):
    if architecture is None:
        architecture = SPACE.random(Random(f"{origin} {generation} {slot}"))
    return Record(0, Key(origin, generation, slot), Candidate(architecture, values), state, None, "host:1", 0.0)


@pytest.fixture(scope="module")
def records():
    """Three generations of two origins, each network once; some pruned, one running."""
    rng, unseen = Random(0), iter(architectures())
    made = []
    for origin, generation, slot in product(("evolution", "random"), range(3), range(6)):
        params = rng.randrange(1, 40) * 1e5
        values = {"params": params, "macs": rng.randrange(1, 9) * 1e8, "semseg": rng.random(), "depth": rng.random()}
        values["delta_m"] = params / 4e5 + rng.randrange(-30, 3)
        state = TrialState.PRUNED if slot == 5 else TrialState.COMPLETE
        made.append(record(origin, generation, slot, values, state, next(unseen)))
    hand_made = {"params": 1.0, "macs": 1.0, "semseg": 1.0, "depth": 0.1, "delta_m": 99.0}
    made.append(record("hand-made", 0, 0, hand_made, architecture=next(unseen)))
    made.append(record("random", 2, 6, {}, TrialState.RUNNING, next(unseen)))
    return made


def architectures():
    """Different ones in a fixed order."""
    rng = Random(1)
    return dict.fromkeys(SPACE.random(rng) for _ in range(500))


def dominated(one, other, objectives):
    mine = [objective.loss(one.candidate.values) for objective in objectives]
    theirs = [objective.loss(other.candidate.values) for objective in objectives]
    return all(t <= m for m, t in zip(mine, theirs, strict=True)) and mine != theirs


@pytest.mark.parametrize("names", [["delta_m"], ["delta_m", "params"], ["depth", "macs", "params"], ["params"]])
def test_the_files_hold_the_front(records, tmp_path, names):
    tasks = build_tasks({"semseg": {"type": "semseg", "classes": ["a", "b"]}, "depth": {"type": "depth"}})
    objectives = [Objective(name, "maximize" if name == "delta_m" else "minimize") for name in names]
    write_results(tmp_path, records, objectives, tasks)
    searched = [one for one in records if one.key.origin == "evolution" and one.state == TrialState.COMPLETE]
    expected = {
        f"evolution-{one.key.generation:02d}-{one.key.slot:02d}": one
        for one in searched
        if not any(dominated(one, other, objectives) for other in searched)
    }
    written = json.loads((tmp_path / "pareto.json").read_text())
    assert written["objectives"] == {objective.name: objective.direction for objective in objectives}
    assert written["evaluated"] == {"evolution": 18, "random": 18, "hand-made": 1}
    assert {row["name"] for row in written["front"]} == set(expected)
    losses = [objectives[0].loss(row["values"]) for row in written["front"]]
    assert losses == sorted(losses)
    for row in written["front"]:
        candidate = expected[row["name"]].candidate
        assert row["values"] == candidate.values
        assert Architecture.from_json((tmp_path / row["file"]).read_text()) == candidate.architecture
    files = {path.name for path in (tmp_path / "architectures").iterdir()}
    assert files == {f"{name}{ending}" for name in expected for ending in (".json", ".png")}
    with (tmp_path / "pareto.csv").open(newline="") as lines:
        table = list(csv.DictReader(lines))
    for line, row in zip(table, written["front"], strict=True):
        assert (line["name"], line["file"]) == (row["name"], row["file"])
        assert {name: float(line[name]) for name in row["values"]} == row["values"]
    course = json.loads((tmp_path / "hypervolume.json").read_text())["progress"]
    assert course["evolution"]["evaluations"] == course["random"]["evaluations"] == [6, 12, 18]
    for progress in course.values():
        assert progress["shares"] == sorted(progress["shares"])
        assert 0 <= progress["shares"][0] <= progress["shares"][-1] <= 1
    for name in ("pareto.png", "hypervolume.png"):
        with Image.open(tmp_path / name) as picture:
            assert picture.width == 1600


def test_without_a_finished_network_there_is_nothing_to_write(tmp_path):
    running = record("evolution", 0, 0, {}, TrialState.RUNNING)
    with pytest.raises(ConfigError, match="no network has been evaluated completely"):
        write_results(tmp_path, [running], OBJECTIVES, {})


def colors(path):
    """Saturated colours that cover more than a line does."""
    with Image.open(path) as picture:
        counts = picture.convert("RGB").getcolors(1 << 20)
    return {color for count, color in counts if count > 2000 and max(color) - min(color) > 60}


def test_a_drawing_has_a_colour_for_every_group_of_tasks(tmp_path):
    path = tmp_path / "drawing.png"
    rows = ((0, 0, 0), (0, 1, 2), (0, 1, 0), (0, 0, 0))
    for sharing, groups in (((), 0), (rows[:1] * 4, 0), (rows, 3), ((rows[2],) * 4, 2), (((7, 7, 3),) * 4, 2)):
        draw_architecture(path, Architecture(8, 2, (2.0, 4.0), (1, 2), sharing), ["a", "b", "c"], "title")
        assert len(colors(path)) == groups


def test_quantities_are_shown_in_their_units():
    tasks = build_tasks({"semseg": {"type": "semseg", "classes": ["a", "b"]}, "depth": {"type": "depth"}})
    assert describe({"params": 5.912e6, "macs": 1.2e9, "semseg": 0.2, "latency": 0.0123, "delta_m": -1.5}) == (
        "5.912 M params, 1.2 G MACs, 12.3 ms, -1.5 % delta_m"
    )
    assert unit_of("semseg", tasks)[::2] == ("semseg mIoU, %", 0.01)
    assert unit_of("depth", tasks)[::2] == ("depth rmse, m", 1.0)


def test_a_pick_is_the_best_of_all_inside_the_limits(records):
    complete = [one for one in records if one.state == TrialState.COMPLETE and one.key.origin != "hand-made"]
    without = [one for one in records if one.key.origin != "hand-made"]
    for objective, better in ((OBJECTIVES, max), ([Objective("depth", "minimize")], min), (OBJECTIVES[1:], max)):
        name = "depth" if objective[0].name == "depth" else "delta_m"
        for params, macs in product((5e5, 1.1e6, 4e6), (4e8, 1e9)):
            inside = [one.candidate.values for one in complete
                      if one.candidate.values["params"] <= params and one.candidate.values["macs"] <= macs]  # fmt: skip
            chosen = pick(without, objective, {"params": params, "macs": macs})
            assert chosen.candidate.values[name] == better(values[name] for values in inside)
            assert chosen.candidate.values in inside
    assert pick(records, OBJECTIVES, {}).key.origin == "hand-made"


def test_a_result_has_the_front_a_table_of_it_and_picks_from_it(records, tmp_path):
    tasks = build_tasks({"semseg": {"type": "semseg", "classes": ["a", "b"]}, "depth": {"type": "depth"}})
    found = SearchResult(tmp_path, OBJECTIVES, tasks, records)
    searched = [one for one in records if one.key.origin == "evolution" and one.state == TrialState.COMPLETE]
    expected = [one.candidate for one in searched if not any(dominated(one, other, OBJECTIVES) for other in searched)]
    assert found.front == sorted(expected, key=lambda one: -one.values["delta_m"])
    assert found.pick(params=1.1e6) == pick(records, OBJECTIVES, {"params": 1.1e6})
    table = found.table(rows=2)
    assert [column.header for column in table.columns] == ["M params", "G MACs", "% semseg", "m depth", "% delta_m"]
    ends = [f"{one.values['params'] / 1e6:.4g}" for one in (found.front[0], found.front[-1])]
    assert list(table.columns[0].cells) == ends
    assert SearchResult(tmp_path, OBJECTIVES, tasks, []).table().row_count == 0  # nothing yet


def test_of_equal_networks_the_smallest_is_picked():
    made = [record("evolution", 0, slot, {"delta_m": 1.0, "params": params}) for slot, params in enumerate((3.0, 2.0))]
    assert pick(made, OBJECTIVES, {}).key.slot == 1


def test_what_cannot_be_picked_is_explained(records):
    with pytest.raises(ConfigError, match=r"no evaluated network has params <= 0\.5; the least of each are 1e-06 M"):
        pick(records, OBJECTIVES, {"params": 0.5})
    with pytest.raises(ConfigError, match="did not measure latency"):
        pick(records, OBJECTIVES, {"latency": 1.0})
    with pytest.raises(ConfigError, match="no network has been evaluated completely"):
        pick([], OBJECTIVES, {"params": 1.0})


def make_study(storage, name, records):
    """Write records as a search does."""
    costs = {one.candidate.architecture: dict(one.candidate.values) for one in records}
    study = SearchStudy(open_storage(storage), name, OBJECTIVES)
    for one in study.claim({one.key: one.candidate.architecture for one in records}, costs.__getitem__):
        study.finish(one, costs[one.candidate.architecture], (), True)


@pytest.mark.parametrize("storage", [None, "study.journal"])
def test_a_study_is_read_as_it_was_written(records, tmp_path, storage):
    complete = sorted((one for one in records if one.state == TrialState.COMPLETE), key=lambda one: one.key)
    place = str(tmp_path / storage) if storage else None
    make_study(place or str(tmp_path / "first" / "study.db"), "first", complete)
    objectives, found = load_search(tmp_path / "first", place)
    assert objectives == OBJECTIVES
    assert [(one.key, one.candidate, one.state) for one in found] == [
        (one.key, one.candidate, one.state) for one in complete
    ]
    with pytest.raises(ConfigError, match="there is no study 'second'"):
        load_search(tmp_path / "second", place)
    assert not (tmp_path / "second").exists()


def test_pick_prints_a_network_and_writes_its_file(records, tmp_path, capsys):
    complete = [one for one in records if one.state == TrialState.COMPLETE and one.key.origin != "hand-made"]
    make_study(str(tmp_path / "search" / "study.db"), "search", complete)
    expected = pick(complete, OBJECTIVES, {"params": 1.1e6})
    main(["search", "pick", str(tmp_path), "--params", "1.1e6", "--json", str(tmp_path / "pick.json")])
    first, path = capsys.readouterr().out.splitlines()
    about = json.loads((tmp_path / "pick.json").read_text())
    assert about["values"] == expected.candidate.values
    assert about["file"] == path
    assert first == f"{about['name']}: {describe(about['values'])}"
    for text in ((tmp_path / path).read_text(), json.dumps(about["architecture"])):
        assert Architecture.from_json(text) == expected.candidate.architecture


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["{run}", "--params", "1"], "no evaluated network has params <= 1;"),
        (["{run}", "--latency", "1"], "the search did not measure latency"),
        (["{run}", "--study", "other"], "there is no study 'other'"),
        (["{run}/nowhere"], "there is no run folder"),
        (["{run}", "--parms", "1"], "did you mean 'params'"),
        (["{run}", "--json", "{run}"], "it is a folder; give the name of a file in it"),
    ],
)
def test_pick_explains_what_is_wrong(records, tmp_path, capsys, arguments, sentence):
    make_study(str(tmp_path / "search" / "study.db"), "search", records[:5])
    with pytest.raises(SystemExit):
        main(["search", "pick", *(argument.format(run=tmp_path) for argument in arguments)])
    message = capsys.readouterr().err
    assert sentence in message
    assert message.count("\n") == 1
