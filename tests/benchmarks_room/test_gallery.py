"""gallery.py: a picture of a task, and a figure of several."""

import gallery
import numpy as np


def test_two_tasks_end_to_end(tmp_path):
    gallery.main([str(tmp_path / "two.png"), "--tasks", "ball_run", "ball_circle", "--size", "16"])
    assert (tmp_path / "two.png").stat().st_size > 1000


def test_rows_are_filled_one_after_the_other():
    pictures = {str(index): np.zeros((4, 4, 3), np.uint8) for index in range(gallery.COLUMNS + 1)}
    figure = gallery.figure(pictures)
    assert len(figure.axes) == 2 * gallery.COLUMNS
    assert [axis.get_title() for axis in figure.axes][: len(pictures)] == list(pictures)
