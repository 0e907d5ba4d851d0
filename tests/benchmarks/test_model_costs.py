"""The page of what models cost: its numbers are those of the script, and the script's are right."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

sys.path.insert(0, str(ROOT / "benchmarks"))
import model_costs  # noqa: E402 - benchmarks are scripts, not a package


@pytest.mark.parametrize(("data", "encoder"), [("nyud", "hrnet18"), ("pascal", "swin_t")])
def test_the_page_has_what_the_script_counts(data, encoder, monkeypatch):
    monkeypatch.chdir(ROOT)
    page = (ROOT / "docs" / "models.md").read_text()
    section = page.partition(f"### {model_costs.DATA[data]}\n")[2].partition("###")[0]
    assert model_costs.table_row(data, encoder) in section.splitlines()


def test_a_vision_transformer_costs_what_its_layers_multiply(monkeypatch):
    monkeypatch.chdir(ROOT)
    size, cost, _ = model_costs.count(model_costs.EXPERIMENTS / "nyud_mqtransformer_vit_b.yaml", ["--model=Baseline"])
    assert size == (448, 576)
    width, patches = 768, 28 * 36
    tokens = patches + 1
    block = 12 * tokens * width**2 + 2 * tokens**2 * width  # projections and MLP; attention
    upsampling = 4 * width**2 * (patches + 4 * patches + patches)  # to strides 4 (twice) and 8
    assert cost.macs == patches * width * 3 * 16**2 + 12 * block + upsampling
    assert cost.parameters / 1e6 == pytest.approx(93.17, abs=0.01)
