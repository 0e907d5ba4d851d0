"""Every family of timm's encoders: it trains, or is refused for a reason, as the page says."""

import sys
from pathlib import Path

import pytest
import timm

from taskformer.errors import ConfigError
from taskformer.models import Backbone

ROOT = Path(__file__).parents[2]

sys.path.insert(0, str(ROOT / "benchmarks"))
import encoder_families  # noqa: E402 - benchmarks are scripts, not a package
import pages  # noqa: E402 - nor is this

PAGE = (ROOT / "docs" / "encoders.md").read_text(encoding="utf-8")


NAMES = [*encoder_families.WORKING, *encoder_families.REFUSED]


def test_no_family_that_gives_maps_is_left_out():
    folder = Path(timm.models.__file__).parent
    giving = [path.stem for path in folder.glob("*.py") if "def forward_intermediates" in path.read_text("utf-8")]
    assert set(giving) <= {encoder_families.family(name) for name in NAMES}
    assert len(encoder_families.WORKING) >= 60


def test_the_page_has_a_row_of_each():
    rows = PAGE.partition(encoder_families.BEGIN)[2].partition(pages.END)[0].splitlines()
    named = [row.split("`")[1] for row in rows if "`" in row]
    assert sorted(named) == sorted(NAMES)
    for name, why in encoder_families.REFUSED.items():
        assert encoder_families.row(name, why) in PAGE


@pytest.mark.slow
@pytest.mark.parametrize("name", encoder_families.WORKING)
def test_a_family_trains_as_the_page_says(name):
    assert encoder_families.train(name) in PAGE.splitlines()


@pytest.mark.slow
@pytest.mark.parametrize("name", encoder_families.REFUSED)
def test_a_family_is_refused_when_it_is_built(name):
    with pytest.raises(ConfigError, match=f"the encoder '{name}' does not take images of any size, as one of"):
        Backbone(name)
