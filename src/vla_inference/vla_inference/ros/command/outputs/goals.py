"""Goals of one action: each replaces the one before, and a stop cancels what is under way."""

from __future__ import annotations

from typing import Any

from rclpy.action import ActionClient
from rclpy.node import Node


class Goals:
    """what: the action in words. remark: what went wrong last; empty: nothing."""

    def __init__(self, node: Node, client: ActionClient, name: str, what: str):
        self.client, self.name, self.what = client, name, what
        self._node = node
        self.remark = ""
        self.sent = self.rejected = 0
        self._open: dict[int, Any] = {}  # handles of accepted goals that have not ended
        self._newest = self._stopped = 0  # numbers of goals

    def missing(self) -> str:
        """Why there is no action server; empty: there is one."""
        there = self.client.server_is_ready()
        return "" if there else f"no server of {self.what} {self.name}; start it"

    def others(self) -> int:
        """Number of other clients of the action; 0 on Humble, which cannot count them."""
        count = getattr(self._node, "count_clients", None)
        return max(0, count(f"{self.name}/_action/send_goal") - 1) if count else 0

    def send(self, goal: Any) -> None:
        self.remark = self.missing()
        if self.remark:
            return
        self.sent += 1
        self._newest += 1
        number = self._newest
        future = self.client.send_goal_async(goal)
        future.add_done_callback(lambda f: self._answered(f.result(), number))

    def _answered(self, goal: Any, number: int) -> None:
        if not goal.accepted:
            self.rejected += 1
            self.remark = f"{self.what} {self.name} rejected a goal"
            return
        self.remark = ""
        if self._stopped >= number:
            goal.cancel_goal_async()  # the stop came before its acceptance
            return
        self._open[number] = goal
        goal.get_result_async().add_done_callback(lambda f: self._ended(f.result(), number))

    def _ended(self, answer: Any, number: int) -> None:
        """answer: status and result."""
        self._open.pop(number, None)

    def stop(self) -> None:
        """Cancels the current goal, and those before it that have not ended."""
        self._stopped = self._newest
        goals, self._open = self._open, {}
        for goal in goals.values():
            goal.cancel_goal_async()

    def close(self) -> None:
        self.client.destroy()
