"""Pictures recorded for world models: stacks as the world shows them, and files of another kind refused."""

import dataclasses
import hashlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import vision
import vision_data
import vision_needs
import vision_outcome
from one_line import refusal
from vision_phases import Job
from vision_presets import METHODS, PRESETS, changed, look, quick

from safejax import training
from safejax.data import DatasetError, write_dsrl
from safejax.data.provenance import provenance
from safejax.envs.pixels import RENDERER, frame_stack
from safejax.runs import Interrupted
from safejax.types import Env, EnvState, Transition

SIDE, LENGTH = 32, 5


def world():
    """Its picture says which step it is; episodes of LENGTH steps."""

    def shown(steps):
        return {"pixels": jnp.full((SIDE, SIDE, 3), steps, jnp.uint8)}

    def reset(key):
        zero, no = jnp.zeros(()), jnp.zeros((), bool)
        return EnvState((), shown(0), zero, zero, no, no, shown(0), jnp.zeros((), jnp.int32))

    def step(state, action, key):
        steps = state.steps + 1
        end = steps >= LENGTH
        after = jnp.where(end, 0, steps)
        return state._replace(
            observation=shown(after), truncated=end, final_observation=shown(steps), steps=after, reward=action[0]
        )

    return Env(reset, step, {"pixels": jax.ShapeDtypeStruct((SIDE, SIDE, 3), jnp.uint8)}, 1, LENGTH, "counter")


def episodes(env, count=2):
    """Whole episodes of one environment."""
    state, rows = env.reset(jax.random.key(0)), []
    for index in range(count * LENGTH):
        action = jnp.array([index / 20])
        after = env.step(state, action, jax.random.key(1))
        last, one = after.truncated.astype(jnp.float32), jnp.ones(())
        row = (state.observation, action, after.reward, after.cost, one, last, after.final_observation)
        rows.append(Transition(*row))
        state = after
    return training.whole_episodes([jax.tree.map(lambda *leaves: jnp.stack(leaves)[None, None], *rows)])


@pytest.fixture
def written(tmp_path):
    def write(**changes):
        path = tmp_path / "file.hdf5"
        about = provenance(task="ball_run", engine="mujoco", renderer=RENDERER, seed=0, collector={})
        about |= {"cameras": ["top"], "side": SIDE, "action_repeat": 1, "kinds": ["unsafe", "safe"]} | changes
        write_dsrl(path, episodes(world()), about)
        return path

    return write


def test_stacked_rows_are_those_of_the_stacked_world(written):
    found = vision_data.load(written(), "ball_run", look(("top",)), 3).transitions
    wanted = episodes(frame_stack(world(), 3)).transitions
    for name in ("observation", "next_observation"):
        np.testing.assert_array_equal(getattr(found, name)["pixels"], getattr(wanted, name)["pixels"], err_msg=name)


def test_windows_need_no_successors(written):
    found = vision_data.load(written(), "ball_run", look(("top",)), 1).transitions
    assert found.next_observation == ()
    np.testing.assert_array_equal(found.observation["pixels"][:, 0, 0, 0], [0, 1, 2, 3, 4] * 2)


@pytest.mark.parametrize(
    ("change", "task", "expected"),
    [
        ({"cameras": ["track"]}, "ball_run", r"cameras \['track'\], expected \['top'\]"),
        ({"action_repeat": 2}, "ball_run", "action_repeat 2, expected 1"),
        ({"side": 64}, "ball_run", "side 64, expected 32"),
        ({}, "ball_circle", "collected in 'ball_run', expected 'ball_circle'"),
        ({"renderer": "mujoco"}, "ball_run", "drawn by 'mujoco'"),
    ],
)
def test_a_file_of_another_kind_is_refused(written, change, task, expected):
    with pytest.raises(DatasetError, match=expected) as caught:
        vision_data.load(written(**change), task, look(("top",)), 1)
    assert "\n" not in str(caught.value)


def test_pictures_of_another_number_of_cameras_are_refused(written):
    two = dataclasses.replace(look(("top",)), cameras=("top", "track"))
    with pytest.raises(DatasetError, match=r"pixels \[32, 32, 3\], expected \[32, 32, 6\] a row"):
        vision_data.load(written(cameras=["top", "track"]), "ball_run", two, 1)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--task", "ball_runn"], "--task is 'ball_runn'"),
        (["--methods", "fosp,td3"], "--methods is 'td3'"),
        (["--preset", "huge"], "--preset is 'huge'"),
        (["--seeds", "0"], "--seeds is 0"),
        (["--limit", "-1"], "--limit is -1"),
        (["--behavior-multiplier", "1,-2"], "argument --behavior-multiplier: invalid start_and_rate value: '1,-2'"),
        (["--behavior-multiplier", "inf,1"], "argument --behavior-multiplier: invalid start_and_rate value: 'inf,1'"),
        (["--set", "expectil=.9"], "--set 'expectil=.9', expected name=value with a name of length,"),
        (["--set", "horizon=far"], "--set 'horizon=far', expected a value like 15"),
        (
            ["--set", "length=500", "--task", "ball_run"],
            "--set length=500, expected at most the 100 steps of an episode",
        ),
        (["--set", "expectile=1.5", "--quick", "--task", "ball_run"], "expectile is 1.5"),
        (["--data", "nowhere.hdf5", "--quick", "--task", "ball_run"], "no such file"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(arguments, expected, tmp_path, capsys):
    places = "--output", str(tmp_path / "run"), "--cache", str(tmp_path / "cache")
    assert expected in refusal(vision.main, capsys, *arguments, *places)


def test_a_run_goes_on_with_the_data_that_it_began_with_alone(tmp_path, capsys, monkeypatch):
    """Another file under the same path is refused; nothing is read or trained here."""

    def stopped(*arguments):
        raise Interrupted("stopped")

    monkeypatch.setattr(vision_data, "load", lambda *arguments: None)
    monkeypatch.setattr(vision_needs, "pictures", stopped)
    file, run = tmp_path / "file.hdf5", tmp_path / "run"
    arguments = ["--quick", "--task", "ball_run", "--data", str(file), "--output", str(run), "--cache", str(tmp_path)]
    file.write_bytes(b"one")
    for _ in range(2):
        vision.main(arguments)
        assert "stopped" in capsys.readouterr().err
    file.write_bytes(b"other")
    assert f"data_sha256='{hashlib.sha256(b'one').hexdigest()}'" in refusal(vision.main, capsys, *arguments)


def test_numbers_of_an_ablation_come_last():
    budget = changed(PRESETS["mini"], "gate=none,pessimistic=False,horizon=5,learning_rate=.1,offline_fraction=.25")
    config, other = (METHODS[name](budget, world(), 20.0).config for name in ("fosp", "safe_dreamer"))
    assert (config.gate, config.pessimistic, config.horizon, config.learning_rate) == ("none", False, 5, 0.1)
    assert (other.horizon, other.learning_rate, other.offline_fraction) == (5, 0.1, 0.25)


def test_the_mean_picture_is_off_by_the_variance():
    """Of 2 values in 2,500 pictures, one steady, one 0 or 1 equally often: 0 and 1/4."""
    pictures = np.zeros((2500, 1, 2, 1), np.uint8)
    pictures[:, 0, 0], pictures[::2, 0, 1] = 77, 255
    assert vision_outcome._about_the_mean(pictures) == pytest.approx(0.25)


def test_what_a_run_needs_is_said_in_a_line_a_method():
    env, budget = world(), quick(PRESETS["mini"])
    words = vision_needs.method(
        Job(None, "bc", METHODS["bc"](budget, frame_stack(env, 3), 20.0), frame_stack(env, 3), budget)
    )
    assert re.fullmatch(r"behaviour cloning: 0\.\d MB of state; 8 updates of 0\.\d GFLOP offline", words)
    # 3 kinds of 2 episodes of 5 pictures of 3,072 bytes
    assert vision_needs.pictures(look(("top",)), budget, 3, LENGTH).startswith("pictures: 0.1 MB")


def test_all_presets_bind_all_methods():
    env = world()
    for budget in [*PRESETS.values(), *map(quick, PRESETS.values())]:
        for name, make in METHODS.items():
            row = make(budget, env, 20.0)
            assert row.frames in (1, budget.frames), name


@pytest.mark.slow
def test_the_whole_path(tmp_path, capsys):
    arguments = ["--quick", "--task", "ball_run", "--methods", "fosp,safe_dreamer,pex,bc"]
    places = ["--output", str(tmp_path / "run"), "--cache", str(tmp_path / "cache")]
    vision.main([*arguments, *places])
    first = (tmp_path / "run" / "results.json").read_bytes()
    for name in ("table.txt", "offline.png", "online.png", "dream.gif", "policies"):
        assert (tmp_path / "run" / name).exists(), name
    vision.main([*arguments, *places])  # nothing is left to do but the results
    assert (tmp_path / "run" / "results.json").read_bytes() == first
