"""The environments that a `mimicgen` package registers; runs under the other Python."""

from __future__ import annotations

from vla_sim_bridge.envs.other_python.server import Refusal, RobosuiteServer

ROBOT = "Panda"


class Server(RobosuiteServer):
    def hello(self, request, arrays):
        """Versions, and every environment that robosuite knows after importing the package."""
        package = request["package"]
        versions = self.versions(package)
        from robosuite.environments.base import REGISTERED_ENVS

        own = set(REGISTERED_ENVS)
        try:
            __import__(package)
        except ImportError as error:
            remedy = "install it there, its licence permitting"
            raise Refusal(f"{package} cannot be imported ({error})", remedy) from error
        return {**versions, "environments": sorted(set(REGISTERED_ENVS) - own)}, {}

    def make(self, request, arrays):
        import robosuite

        self.env = robosuite.make(
            request["env"],
            robots=ROBOT,
            controller_configs=robosuite.load_controller_config(default_controller="OSC_POSE"),
            has_renderer=False,
            has_offscreen_renderer=True,
            use_camera_obs=False,
            ignore_done=True,
            control_freq=request["control_freq"],
        )
        return {"fovy": self.cameras()}, {}

    def reset(self, request, arrays):
        self.seed(request["seed"])
        self.env.reset()
        return self.now()
