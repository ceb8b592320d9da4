"""Scores that papers published for offline methods on D4RL, as they print them, with table and selection rule."""

from __future__ import annotations

from typing import NamedTuple


class Source(NamedTuple):
    """Where a published score stands, and of which checkpoint it is."""

    table: str
    selection: str  # "last"; "best" of a run's evaluations; "offline", by the behavior loss; or "not stated"


_CORL = Source("tinkoff-ai/CORL@6afec90, README, last scores", "last")
_DQL = Source("Diffusion-QL, arXiv 2208.06193, table 1; standard errors over rollouts", "offline")
_DIFFCPS = Source("DiffCPS, arXiv 2310.05333v1, table 1", "best")
_QUOTED = "quoted in DiffCPS, arXiv 2310.05333v1, table 1"

# One source a column, in the table's order. Scores are normalised as in D4RL and stand as printed: the mean, and the
# deviation over seeds where there is one.
_TABLES: tuple[tuple[str, tuple[Source, ...]], ...] = (
    (
        """
data                        |bc            |td3_bc      |iql        |idql |sfbc        |diffusion_ql|diffcps
halfcheetah-medium-v2       |42.40 +- 0.19 |48.3 +- 0.3 |47.4 (0.2) |51.0 |45.9 +- 2.2 |51.1 +- 0.5 |71.0 +- 0.5
hopper-medium-v2            |53.51 +- 1.76 |59.3 +- 4.2 |66.3 (5.7) |65.4 |57.1 +- 4.1 |90.5 +- 4.6 |100.1 +- 3.5
walker2d-medium-v2          |63.23 +- 16.24|83.7 +- 2.1 |78.3 (8.7) |82.5 |77.9 +- 2.5 |87.0 +- 0.9 |90.9 +- 1.6
halfcheetah-medium-replay-v2|35.66 +- 2.33 |44.6 +- 0.5 |44.2 (1.2) |45.9 |37.1 +- 1.7 |47.8 +- 0.3 |50.5 +- 0.6
hopper-medium-replay-v2     |29.81 +- 2.07 |60.9 +- 18.8|94.7 (8.6) |92.1 |86.2 +- 9.1 |101.3 +- 0.6|101.1 +- 0.2
walker2d-medium-replay-v2   |21.80 +- 10.15|81.8 +- 5.5 |73.9 (7.1) |85.1 |65.1 +- 5.6 |95.5 +- 1.5 |91.3 +- 0.7
halfcheetah-medium-expert-v2|55.95 +- 7.35 |90.7 +- 4.3 |86.7 (5.3) |95.9 |92.6 +- 0.5 |96.8 +- 0.3 |100.3 +- 4.1
hopper-medium-expert-v2     |52.30 +- 4.01 |98.0 +- 9.4 |91.5 (14.3)|108.6|108.6 +- 2.1|111.1 +- 1.3|112.1 +- 0.6
walker2d-medium-expert-v2   |98.96 +- 15.98|110.1 +- 0.5|109.6 (1.0)|112.7|109.8 +- 0.2|110.1 +- 0.3|113.1 +- 1.8
""",
        (
            _CORL,
            Source("TD3+BC, arXiv 2106.06860, table 9; mean of the last ten evaluations", "last"),
            Source("IQL, arXiv 2110.06169, table 1; deviations from fuyw/jrlzoo, iql/README.md", "not stated"),
            Source("IDQL-A, arXiv 2304.10573, table 1", "not stated"),
            Source("SfBC, arXiv 2209.14548, table 1", "not stated"),
            _DQL,
            _DIFFCPS,
        ),
    ),
    (
        """
data                        |td3_bc      |awr
halfcheetah-medium-v0       |42.8 +- 0.3 |37.4
hopper-medium-v0            |99.5 +- 1.0 |35.9
walker2d-medium-v0          |79.7 +- 1.8 |17.4
halfcheetah-medium-replay-v0|43.3 +- 0.5 |40.3
hopper-medium-replay-v0     |31.4 +- 3.0 |28.4
walker2d-medium-replay-v0   |25.2 +- 5.1 |15.5
halfcheetah-medium-expert-v0|97.9 +- 4.4 |52.7
hopper-medium-expert-v0     |112.2 +- 0.2|27.1
walker2d-medium-expert-v0   |101.1 +- 9.3|53.8
""",
        (
            Source("TD3+BC, arXiv 2106.06860, table 2; mean of the last ten evaluations", "last"),
            Source("D4RL's, quoted in SfBC, arXiv 2209.14548, table 1", "not stated"),
        ),
    ),
    (
        """
data                     |iql |diffusion_ql|diffcps
antmaze-umaze-v0         |87.5|93.4        |97.4 +- 3.7
antmaze-umaze-diverse-v0 |62.2|66.2        |87.4 +- 3.8
antmaze-medium-play-v0   |71.2|76.6        |88.2 +- 2.2
antmaze-medium-diverse-v0|70.0|78.6        |87.8 +- 6.5
antmaze-large-play-v0    |39.6|46.4        |65.6 +- 3.6
antmaze-large-diverse-v0 |47.5|57.3        |63.6 +- 3.9
""",
        (
            Source("IQL, arXiv 2110.06169, table 1", "not stated"),
            Source(f"Diffusion-QL, {_QUOTED}", "offline"),
            _DIFFCPS,
        ),
    ),
    (
        """
data                     |bc           |td3_bc        |iql           |idql|sfbc
antmaze-umaze-v2         |55.25 +- 4.15|70.75 +- 39.18|77.00 +- 5.52 |94.0|92.0
antmaze-umaze-diverse-v2 |47.25 +- 4.09|44.75 +- 11.61|54.25 +- 5.54 |80.2|85.3
antmaze-medium-play-v2   |0.00 +- 0.00 |0.25 +- 0.43  |65.75 +- 11.71|84.5|81.3
antmaze-medium-diverse-v2|0.75 +- 0.83 |0.25 +- 0.43  |73.75 +- 5.45 |84.8|82.0
antmaze-large-play-v2    |0.00 +- 0.00 |0.00 +- 0.00  |42.00 +- 4.53 |63.5|59.3
antmaze-large-diverse-v2 |0.00 +- 0.00 |0.00 +- 0.00  |30.25 +- 3.63 |67.9|45.5
""",
        (
            _CORL,
            _CORL,
            _CORL,
            Source(f"IDQL-A, {_QUOTED}; version not stated, its launcher has v2", "not stated"),
            Source(f"SfBC, {_QUOTED}; version not stated, its code has v2", "not stated"),
        ),
    ),
    (
        """
data              |bc            |iql           |idql
pen-human-v1      |71.03 +- 6.26 |78.49 +- 8.21 |76 +- 10
pen-cloned-v1     |51.92 +- 15.15|83.42 +- 8.19 |64 +- 7
pen-expert-v1     |109.65 +- 7.28|128.05 +- 9.21|140 +- 6
door-human-v1     |2.34 +- 4.00  |3.26 +- 1.83  |6 +- 2
door-cloned-v1    |-0.09 +- 0.03 |3.07 +- 1.75  |0
door-expert-v1    |105.35 +- 0.09|106.65 +- 0.25|105 +- 1
hammer-human-v1   |3.03 +- 3.39  |1.79 +- 0.80  |2 +- 1
hammer-cloned-v1  |0.55 +- 0.16  |1.50 +- 0.69  |2 +- 1
hammer-expert-v1  |126.78 +- 0.64|128.68 +- 0.33|125 +- 4
relocate-human-v1 |0.04 +- 0.03  |0.12 +- 0.04  |0
relocate-cloned-v1|-0.06 +- 0.01 |0.04 +- 0.01  |0
relocate-expert-v1|107.58 +- 1.20|106.11 +- 4.02|107 +- 1
""",
        (_CORL, _CORL, Source("IDQL re-run with tuned N in FQL, arXiv 2502.02538, table 3", "not stated")),
    ),
)

PUBLISHED: dict[str, dict[str, str]] = {}
"""D4RL name -> row of the table -> score as published.

Nothing for AlignIQL, whose tables were not at hand, nor for diffusion_bc and cpq, which have none on D4RL.
"""

SOURCES: dict[str, dict[str, Source]] = {}
"""The same keys -> where it stands. Scores of unlike selection do not compare: CORL's best beat its last by 5 to 15."""

for _text, _sources in _TABLES:
    (_, *_columns), *_lines = ([_cell.strip() for _cell in _line.split("|")] for _line in _text.split("\n")[1:-1])
    for _data, *_scores in _lines:
        PUBLISHED[_data] = dict(zip(_columns, _scores, strict=True))
        SOURCES[_data] = dict(zip(_columns, _sources, strict=True))
