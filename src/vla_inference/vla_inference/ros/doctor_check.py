"""Adds the findings of `vla doctor` to `ros2 doctor` (entry point `ros2doctor.checks`)."""

from __future__ import annotations

from ros2doctor.api import DoctorCheck, Result
from ros2doctor.api.format import doctor_error, doctor_warn

from vla_inference.cli.machine_checks import ERROR, WARN, examine


class VlaCheck(DoctorCheck):
    def category(self) -> str:
        return "vla"

    def check(self, *args, **kwargs) -> Result:  # later distributions pass more
        result = Result()
        for finding in examine():
            if finding.level == ERROR:
                doctor_error(str(finding))
                result.add_error()
            elif finding.level == WARN:
                doctor_warn(str(finding))
                result.add_warning()
        return result
