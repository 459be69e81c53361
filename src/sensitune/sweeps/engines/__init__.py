"""Where the runs of a sweep are computed: in processes on this machine, on a Ray cluster, or as jobs of Slurm.

Every engine gets the same jobs, makes one attempt at a time at each, and reports how it ended; a worker that dies has
its job started again.
"""

from sensitune.sweeps.engines._attempt import RunFunction
from sensitune.sweeps.engines._run_jobs import run_jobs
from sensitune.sweeps.engines._settings import EngineName, EngineSettings

__all__ = ["EngineName", "EngineSettings", "RunFunction", "run_jobs"]
