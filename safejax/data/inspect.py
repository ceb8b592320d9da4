"""What a data file holds, or why it is refused: python -m safejax.data.inspect FILE

Reads FILE as `safejax.data.read` does and prints its format, sizes, statistics over episodes, what the file says of
itself and what was noted. A file that is refused gives its one line on the standard error and exit code 2. Nothing is
written and no connection is opened.
"""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from safejax.data.checks import DatasetError, printable
from safejax.data.dataset import Dataset, best_safe_return, episode_returns
from safejax.data.reading import REPAIRS, read
from safejax.scores import known_scores
from safejax.types import check_range

SHOWN_LETTERS = 160


def main(arguments: list[str] | None = None) -> int:
    """Print the summary; the exit code."""
    parser = argparse.ArgumentParser("python -m safejax.data.inspect", description="What a data file holds.")
    parser.add_argument("file", help="DSRL or D4RL HDF5, OGBench npz, or a directory of Minari's")
    parser.add_argument("--name", help="the data set's name, to look scores up (default: the task the file names)")
    parser.add_argument("--cost-limit", type=float, help="say how many episodes keep it")
    parser.add_argument("--costs", choices=["zero"], help="stand in for costs that the file has not")
    parser.add_argument("--rewards", choices=["zero"], help="the same for rewards")
    parser.add_argument("--clip-actions", action="store_true", help="to [-1, 1]")
    parser.add_argument("--repair", choices=REPAIRS, action="append", default=[])
    parser.add_argument("--episode-length", type=int, help="environment steps after which episodes time out")
    parser.add_argument("--max-bytes", type=int, help="refuse larger files (default: a sixth of the memory left)")
    options = vars(parser.parse_args(arguments))
    path, name, cost_limit = (options.pop(key) for key in ("file", "name", "cost_limit"))
    jax.config.update("jax_platforms", "cpu")  # no accelerator is asked for, or looked for over a network
    try:
        if cost_limit is not None:
            check_range("cost_limit", cost_limit, 0.0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # they stand among the notes
            dataset, attributes = read(path, **options)
        for line in summary(dataset, attributes, name, cost_limit):
            print(_encodable(printable(line)))
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read has seen enough, such as head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at the end of Python
    except (DatasetError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def _encodable(line: str) -> str:
    """`line` with escapes for what the standard output cannot encode."""
    encoding = sys.stdout.encoding or "utf-8"
    return line.encode(encoding, "backslashreplace").decode(encoding)


def summary(
    dataset: Dataset, attributes: dict[str, Any], name: str | None = None, cost_limit: float | None = None
) -> Iterator[str]:
    """Lines about a data set and the attributes that `read` gave with it.

    Args:
      dataset: M episodes.
      attributes: with "format" and "notes".
      name: of the data set; None is the task that the file names, if any.
      cost_limit: of an episode, >= 0, cost units.
    """
    rows = dataset.transitions
    returns, costs, lengths = (np.asarray(each, np.float64) for each in episode_returns(dataset))
    terminated = int((rows.discount == 0).sum())
    yield f"format       {attributes['format']}"
    yield f"rows         {len(rows.reward):,}"
    yield f"episodes     {len(lengths):,}: {terminated:,} terminated, {len(lengths) - terminated:,} truncated"
    yield f"observation  {_widths(rows.observation)}"
    yield f"action       {_widths(rows.action)}"
    yield f"{'':13}{'mean':>12}{'sd':>12}{'min':>12}{'max':>12}"
    for label, values in (("return", returns), ("cost", costs), ("length", lengths)):
        numbers = (values.mean(), values.std(), values.min(), values.max())
        yield f"{label:13}" + "".join(f"{number:12.6g}" for number in numbers)
    if cost_limit is not None:
        yield _kept(dataset, costs, cost_limit)
    named = str(name or attributes.get("task") or attributes.get("dataset_id") or "")
    for label, value in known_scores(named, float(returns.mean()), float(costs.mean()), cost_limit).items():
        yield f"{label} {value:g}, of the mean episode"
    about = {key: value for key, value in attributes.items() if key not in ("format", "notes")}
    yield from _listed("provenance", [f"{key}: {value}" for key, value in about.items()])
    yield from _listed("notes", attributes["notes"])


def _kept(dataset: Dataset, costs: np.ndarray, cost_limit: float) -> str:
    """How many episodes keep the limit, and what is odd about it."""
    count = int((costs <= cost_limit).sum())
    best = (
        f"best return {best_safe_return(dataset, cost_limit):g}" if count else "there is no safe behaviour in the log"
    )
    line = f"cost <= {cost_limit:g}: {count:,} of {len(costs):,} episodes, {best}"
    if cost_limit >= costs.max():
        line += "; the limit excludes nothing"
    return line + ("; normalised cost uses eps = 1 at limit 0" if cost_limit == 0 else "")


def _widths(arrays: Any) -> str:
    parts = arrays if isinstance(arrays, dict) else {"": arrays}
    words = (
        f"{part} {list(leaf.shape[1:])} {leaf.dtype}".strip()
        for part, tree in parts.items()
        for leaf in jax.tree.leaves(tree)
    )
    return ", ".join(words)


def _listed(title: str, entries: list[Any]) -> Iterator[str]:
    yield f"{title}{'' if entries else ': none'}"
    for entry in map(str, entries):
        yield "  " + (entry if len(entry) <= SHOWN_LETTERS else entry[:SHOWN_LETTERS] + " ...")


if __name__ == "__main__":
    sys.exit(main())
