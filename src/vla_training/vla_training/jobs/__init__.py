"""Jobs: `vla` commands that are started, watched, cancelled and recorded. See `runner`."""

from vla_training.jobs.kinds import KINDS, Kind
from vla_training.jobs.record import Job
from vla_training.jobs.runner import JobRunner

__all__ = ["KINDS", "Job", "JobRunner", "Kind"]
