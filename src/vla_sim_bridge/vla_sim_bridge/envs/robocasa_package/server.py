"""RoboCasa's kitchens; runs under the Python that has `robocasa` and its assets.

What shapes a result, and is done here:
- A reset draws kitchen, objects and sentence from the environment's own generator, which is
  seeded, and loads a new model: cameras and their fields of view are told with it.
- Cameras are drawn when they are asked for, not in every step.
"""

from __future__ import annotations

import os

import numpy as np

from vla_sim_bridge.envs.other_python.server import Refusal, RobosuiteServer

ROBOT = "PandaOmron"
ASSETS = ("textures", "objects")  # folders that the package's downloads make
STATE = (
    "robot0_base_pos",
    "robot0_base_quat",
    "robot0_base_to_eef_pos",
    "robot0_base_to_eef_quat",
    "robot0_gripper_qpos",
)


class Server(RobosuiteServer):
    robosuite = "1.5"

    def hello(self, request, arrays):
        """Versions, and the tasks that the package registers."""
        versions = self.versions(request["package"])
        try:
            import robocasa
            from robocasa.environments.kitchen.kitchen import REGISTERED_KITCHEN_ENVS
        except ImportError as error:
            remedy = "install robocasa and the robosuite that it needs there"
            raise Refusal(f"robocasa cannot be imported ({error})", remedy) from error
        root = os.path.join(os.path.dirname(robocasa.__file__), "models", "assets")
        for name in ASSETS:
            if not os.path.isdir(os.path.join(root, name)):
                raise Refusal(
                    f"robocasa has no assets ({os.path.join(root, name)} is missing)",
                    "run `python -m robocasa.scripts.download_kitchen_assets` there",
                )
        versions["robocasa"] = getattr(robocasa, "__version__", "")
        return {**versions, "environments": sorted(REGISTERED_KITCHEN_ENVS)}, {}

    def make(self, request, arrays):
        """Also tells the task's number of control steps, where the package has one."""
        from robocasa.utils import dataset_registry as registry
        from robocasa.utils.env_utils import create_env

        if self.env is not None:
            self.env.close()
        self.env = create_env(request["env"], robots=ROBOT, split=request["split"], seed=0)
        self.env.use_camera_obs = False
        if self.env.control_freq != request["control_freq"]:
            raise Refusal(f"robocasa steps at {self.env.control_freq:g} Hz")
        sets = {**registry.ATOMIC_TASK_DATASETS, **registry.COMPOSITE_TASK_DATASETS}
        return {"horizon": int(sets.get(request["env"], {}).get("horizon") or 0)}, {}

    def reset(self, request, arrays):
        self.seed(request["seed"])
        self.env.rng = np.random.default_rng(request["seed"])
        self.seen = self.env.reset()
        about = self.env.get_ep_meta()
        header, out = self.now()
        told = {"fovy": self.cameras(), "lang": str(about.get("lang", ""))}
        for name in ("layout_id", "style_id"):
            told[name] = about[name] if isinstance(about.get(name), int) else -1
        return {**header, **told}, out

    def step(self, request, arrays):
        """arrays: action [12]."""
        self.seen = self.env.step(arrays["action"])[0]
        return self.now()

    def set_state(self, request, arrays):
        super().set_state(request, arrays)
        self.seen = self.env._get_observations(force_update=True)
        return self.now()

    def robot(self):
        """Also `state`, as the package's datasets have it."""
        robot, data = self.env.robots[0], self.env.sim.data
        arm = robot.arms[0]
        site, base = robot.eef_site_id[arm], robot.robot_model.base.correct_naming("base")
        where = {
            "eef_position": data.site_xpos[site],
            "eef_rotation": np.reshape(data.site_xmat[site], (3, 3)),
            "base_position": data.get_body_xpos(base),
            "base_rotation": np.reshape(data.get_body_xmat(base), (3, 3)),
            "fingers": data.qpos[robot._ref_gripper_joint_pos_indexes[arm]],
            "state": np.concatenate([np.ravel(self.seen[name]) for name in STATE]),
        }
        return {name: np.asarray(value, np.float64) for name, value in where.items()}
