"""Train, evaluate and report the arms of a study: which network, or which way to train it, is best.

Usage: python benchmarks/study.py configs/studies/NAME.yaml [--workers 2] [--arms plain fused] [--seeds 0]
       python benchmarks/study.py configs/studies/NAME.yaml --report

The first goes on with what is not finished and writes one JSON file for each run below docs/studies/NAME/runs; the
second makes docs/studies/NAME/README.md from those files alone. docs/studies/README.md explains both.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import real_photos
import real_streets

from taskformer.errors import mistake
from taskformer.studies import read_study, run_study, write_report


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line, run or report; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path, help="the study, e.g. configs/studies/decoders.yaml")
    parser.add_argument("--report", action="store_true", help="only write the report, from the JSON files alone")
    parser.add_argument("--workers", type=int, default=1, help="runs at a time, each with its share of the processors")
    parser.add_argument("--arms", nargs="+", help="only these arms")
    parser.add_argument("--seeds", nargs="+", type=int, help="only these seeds")
    parser.add_argument("--runs_dir", type=Path, default=Path("runs"), help="folder of all runs")
    parser.add_argument("--results_dir", type=Path, default=Path("docs/studies"), help="folder of all studies' results")
    parser.add_argument("--photos", type=Path, default=real_photos.PHOTOS, help="folder of the photographs")
    parser.add_argument("--streets", type=Path, default=real_streets.STREETS, help="folder of the streets, IDD Lite")
    options = parser.parse_args(argv)
    failed: list[str] = []
    try:
        study = read_study(options.study)
        if not options.report:
            failed = run_study(
                study,
                options.workers,
                options.arms,
                options.seeds,
                options.runs_dir,
                options.results_dir,
                scorers(options.photos, options.streets) if study.photographs else None,
                tell=lambda line: print(line, flush=True),
            )
        print(f"wrote {write_report(study, options.results_dir)}")
    except Exception as error:
        if (sentence := mistake(error)) is None:
            raise
        failed.append(sentence)
    for sentence in failed:
        sys.stderr.write(f"study: {sentence}\n")
    return 2 if failed else 0


def scorers(photos: Path, streets: Path) -> dict[str, list[str]]:
    """Return the commands that score runs on the photographs that are here, and say which are not."""
    known = (("photographs", real_photos, "--photos", photos), ("streets", real_streets, "--streets", streets))
    found = {}
    for name, script, flag, folder in known:
        if folder.is_dir():
            found[name] = [sys.executable, script.__file__, flag, str(folder)]
        else:
            print(f"no {name} are scored: {folder} is not there")
    return found


if __name__ == "__main__":
    sys.exit(main())
