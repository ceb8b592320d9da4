"""The drone against recordings of the original simulator, recorded statistics and hand arithmetic."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from bullet_recording import recorded, view_of

from safejax import envs
from safejax.envs.engines.mujoco import make_engine
from safejax.envs.tasks import View, drone

NAMES = ("drone_run", "drone_circle")
RECORDINGS = {name: recorded(name) for name in NAMES}
TASKS = {name: envs.task(name) for name in NAMES}


def test_thrust_by_hand():
    """At rest four rotors carry 1.42 kg; at full speed, climbing at 1 m/s, each pulls 3.777 N."""
    level = np.array([0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0])
    rest = drone.hold(level, np.zeros(10), np.zeros(4))
    np.testing.assert_allclose(rest[:3], [0.0, 0.0, 1.42 * 9.81], rtol=1e-5)
    np.testing.assert_allclose(rest[3:6], 0.0, atol=1e-12)
    np.testing.assert_allclose(rest[6:], 461.5228 * np.array([1, -1, 1, -1]))
    climbing = np.zeros(10)
    climbing[2] = 1.0
    np.testing.assert_allclose(drone.hold(level, climbing, np.ones(4))[2], 4 * 3.777023, rtol=1e-6)
    # the rotor at +x alone pulls harder: nose up, a torque about -y
    tilted = drone.hold(level, np.zeros(10), np.array([1.0, 0.0, 0.0, 0.0]))
    np.testing.assert_allclose(tilted[3:6], [0.0, -0.34 * (4.21389 - 3.48255), 0.0], rtol=1e-4)


def test_forces_are_alike_in_numpy_and_jax():
    generator = np.random.default_rng(0)
    qpos, qvel, action = (generator.normal(size=(3, 5, size)).astype(np.float32) for size in (11, 10, 4))
    qpos[..., 3:7] /= np.linalg.norm(qpos[..., 3:7], axis=-1, keepdims=True)
    held = drone.hold(qpos, qvel, action)
    arrays = [jnp.asarray(part) for part in (qpos, qvel, action)]
    np.testing.assert_allclose(drone.hold(*arrays), held, rtol=1e-5, atol=1e-5)
    force = drone.applied_force(qpos, qvel, held, timestep=0.01)
    ours = drone.applied_force(*arrays[:2], jnp.asarray(held), timestep=0.01)
    np.testing.assert_allclose(ours, force, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_observation_reward_and_cost_follow_from_the_recorded_states(name):
    """A quaternion and its negative are one orientation; contacts are Bullet's there and geometry here."""
    task, recording = TASKS[name], RECORDINGS[name]
    before, after = view_of(recording, "before"), view_of(recording, "after")
    observation, wanted = np.array(task.observe(after)), recording["observation"].copy()
    for each in (observation, wanted):
        each[:, 6:10] *= np.where(each[:, 9:10] < 0, -1, 1)
    np.testing.assert_allclose(observation, wanted, atol=2e-5)
    touching = np.asarray(drone.touching(after))
    same = touching == recording["link_ground_contact"].sum(-1)
    assert same.mean() > 0.95
    reward = np.asarray(task.reward(before, after, jnp.asarray(recording["action"])))
    np.testing.assert_allclose(reward[same], recording["reward"][same], atol=2e-4)
    np.testing.assert_array_equal(task.cost(after), recording["cost"])
    np.testing.assert_array_equal(task.terminated(after), recording["terminated"])


def engine_of(name):
    return make_engine(TASKS[name])


@pytest.mark.parametrize(("name", "speed", "turn"), [("drone_run", 2e-4, 5e-4), ("drone_circle", 1e-3, 2e-3)])
def test_single_steps_in_flight_are_those_of_the_original(name, speed, turn):
    """Medians over rows above .4 m of the change of velocities, from the recorded state before."""
    recording, engine = RECORDINGS[name], engine_of(name)
    flying = np.flatnonzero((recording["base_pos"][:-1, 2] > 0.4) & (np.diff(recording["episode"]) == 0))
    state = jax.tree.map(lambda leaf: leaf[flying], view_of(recording, "after"))
    after = jax.tree.map(lambda leaf: leaf[flying + 1], view_of(recording, "after"))

    @jax.jit
    @jax.vmap
    def step(qpos, qvel, action):
        physics = engine.start(jnp.bool_(True), qpos, qvel)
        return engine.view(engine.step(physics, action)).qvel

    found = step(state.qpos, state.qvel, jnp.asarray(recording["action"][flying + 1]))
    engine.check()
    assert len(flying) > 50
    error = np.median(np.abs(found - after.qvel), axis=0)
    assert error[:3].max() < speed
    assert error[3:6].max() < turn
    change = np.abs(after.qvel - state.qvel).max(axis=0)
    assert change[:3].min() > 50 * speed
    assert change[3:6].min() > 20 * turn


def replayed(name, episode):
    """Recorded and replayed Views [T] of one episode."""
    recording, engine = RECORDINGS[name], engine_of(name)
    rows, index = recording["episode"] == episode, np.flatnonzero(recording["episode_id"] == episode)[0]
    start = jax.tree.map(lambda leaf: leaf[index], view_of(recording, "reset"))

    @jax.jit
    def replay(actions):
        def step(physics, action):
            physics = engine.step(physics, action)
            return physics, engine.view(physics)

        return jax.lax.scan(step, engine.start(jnp.bool_(True), start.qpos, start.qvel), actions)[1]

    found = replay(jnp.asarray(recording["action"][rows]))
    engine.check()
    return jax.tree.map(lambda leaf: leaf[rows], view_of(recording, "after")), found


def test_the_climb_is_that_of_the_original():
    theirs, ours = replayed("drone_run", 18)
    np.testing.assert_allclose(ours.qpos[:, 2], theirs.qpos[:, 2], atol=1e-3)
    assert theirs.qpos[-1, 2] > 1.0


def test_the_turn_is_that_of_the_original():
    theirs, ours = replayed("drone_circle", 20)
    fastest = np.abs(theirs.qvel[:, 5]).max()
    assert fastest > 10.0
    np.testing.assert_allclose(ours.qvel[:, 5], theirs.qvel[:, 5], atol=0.02 * fastest)


@pytest.mark.parametrize("episode", [10, 22])
def test_thirty_steps_of_controlled_flight_stay_within_three_percent(episode):
    """Recorded actions of a controller, without the controller: flight is unstable, so errors grow."""
    theirs, ours = (np.asarray(view.qpos[:30, :3]) for view in replayed("drone_circle", episode))
    travelled = np.linalg.norm(np.diff(theirs, axis=0), axis=-1).sum()
    assert travelled > 1.0
    assert np.linalg.norm(ours[-1] - theirs[-1]) < 0.03 * travelled


# uniform random actions in the original, 60 episodes: (mean, deviation) of return, cost and length
STATISTICS = {
    "drone_run": ((172.45, 107.91), (53.15, 36.51), (200.0, 0.0)),
    "drone_circle": ((3.12, 28.77), (19.42, 22.13), (77.27, 40.18)),
}


@pytest.mark.parametrize("name", NAMES)
def test_random_flights_are_alike_in_the_mean(name):
    """Within three standard errors of the difference of two means."""
    env, count = envs.make(name), 128
    task = TASKS[name]

    def play(key):
        reset_key, act_key = jax.random.split(key)
        actions = jax.random.uniform(act_key, (task.episode_length, 4), minval=-1.0, maxval=1.0)

        def step(carry, action):
            state, alive = carry
            state = env.step(state, action, reset_key)
            sums = alive * jnp.stack([state.reward, state.cost, jnp.ones(())])
            return (state, alive & ~(state.terminated | state.truncated)), sums

        return jnp.sum(jax.lax.scan(step, (env.reset(reset_key), jnp.bool_(True)), actions)[1], axis=0)

    found = np.asarray(jax.jit(jax.vmap(play))(jax.random.split(jax.random.key(0), count)))
    env.check()
    for values, (mean, deviation) in zip(found.T, STATISTICS[name], strict=True):
        error = np.sqrt(values.var() / count + deviation**2 / 60)
        assert abs(values.mean() - mean) <= 3 * error


def view_at(qpos, qvel):
    none = jnp.zeros((len(qpos), 0))
    return View(qpos, qvel, none, none, none)


def test_resets_face_along_the_circle():
    qpos, qvel = jax.vmap(TASKS["drone_circle"].initialize)(jax.random.split(jax.random.key(0), 200))
    heading = 2 * np.arctan2(qpos[:, 6], qpos[:, 3])
    # clockwise: the heading is the position turned by a right angle backwards
    along = np.stack([np.cos(heading), np.sin(heading)], axis=-1)
    radius = np.linalg.norm(qpos[:, :2], axis=-1, keepdims=True)
    np.testing.assert_allclose(along, np.stack([qpos[:, 1], -qpos[:, 0]], axis=-1) / radius, atol=1e-5)
    np.testing.assert_array_equal(qvel[:, :6], 0)
    np.testing.assert_allclose(drone.observe(view_at(qpos, qvel), circle=True)[:, 13:17], 0, atol=1e-6)
    np.testing.assert_allclose(qpos[:, 2], 0.17)


@pytest.mark.slow
def test_engines_agree_on_the_ground_and_in_flight():
    """Also a regression test: mjx finds contacts of spinning cylinders a quarter of a metre above the floor."""
    actions = jnp.concatenate([jnp.zeros((2, 4)), jax.random.uniform(jax.random.key(1), (13, 4), minval=0.2)])

    def fly(engine):
        env = envs.make("drone_run", engine)

        def step(state, action):
            state = env.step(state, action, jax.random.key(0))
            return state, (state.observation, state.reward)

        return jax.jit(lambda key: jax.lax.scan(step, env.reset(key), actions)[1])(jax.random.key(0))

    for mjx, host in zip(fly("mjx"), fly("mujoco"), strict=True):
        np.testing.assert_allclose(mjx, host, atol=2e-5)
    assert host[-1] > 0.5
