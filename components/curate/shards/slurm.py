"""Runs shards as array jobs of Slurm, by datatrove's executor, and waits for their results."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from datatrove.executor import SlurmPipelineExecutor
from datatrove.pipeline.base import PipelineStep

from components.curate.params import SlurmParams
from stagecraft.contract.errors import UserError

_POLL = 5.0    # seconds between two looks at what is done
_GRACE = 90.0  # seconds a result may take to show on a shared file system after its job has ended
_ROOT = Path(__file__).parents[3]


class Executor(SlurmPipelineExecutor):
    """datatrove's, which knows the jobs it submitted. It submits none to add up statistics: that would wait for ever if a task failed."""

    def __init__(self, pipeline: list[PipelineStep], **options: Any):
        self.jobs: list[str] = []
        super().__init__(pipeline, job_id_retriever=self._note, **options)

    def launch_merge_stats(self) -> None:
        """Nothing reads them."""

    def _note(self, told: str) -> str:
        self.jobs.append(re.search(r"\d+", told).group())
        return self.jobs[-1]


def run_slurm(steps: list[PipelineStep], results: Sequence[Path], workers: int, params: SlurmParams, logs: Path) -> None:
    """Submit one task per result, `workers` at a time, and return when all results are there. If that fails, the jobs are cancelled.

    Args:
        results: directories that the tasks make, by rank; these, `logs` and the project must lie where all nodes see them.
        logs: scratch directory; Slurm's logs are in `slurm_logs`.

    Raises:
        UserError: there is no Slurm here, it refuses the job, or the job ended without all results.
    """
    programs, root = shlex.quote(str(Path(sys.prefix) / "bin")), shlex.quote(str(_ROOT))
    environment = f"export PATH={programs}:$PATH PYTHONPATH={root}${{PYTHONPATH:+:$PYTHONPATH}}; cd {root}"
    executor = Executor(
        steps, tasks=len(results), time=params.time, partition=params.partition, qos=params.qos, cpus_per_task=params.cpus_per_task,
        mem_per_cpu_gb=params.memory_gb, tasks_per_job=params.tasks_per_job, max_array_size=params.max_array_size, workers=workers,
        sbatch_args=params.sbatch, env_command="; ".join(filter(None, (params.setup, environment))), job_name="stagecraft-curate",
        logging_dir=str(logs), skip_completed=False)
    try:
        executor.run()
        _wait(executor, results)
    except FileNotFoundError as error:
        raise UserError(f"`{error.filename}` is not on the PATH", where="curate.executor",
                        mend="run where Slurm's commands are, or take the executor `local`") from None
    except subprocess.CalledProcessError as error:
        raise UserError(f"sbatch refused the job with exit code {error.returncode}, as it says above",
                        where=str(logs / "launch_script.slurm"), mend="correct curate.slurm") from None
    except BaseException:
        with suppress(FileNotFoundError):
            subprocess.run(["scancel", *executor.jobs], check=False)
        raise


def _wait(executor: Executor, results: Sequence[Path]) -> None:
    ended = None
    while missing := [rank for rank, path in enumerate(results) if not path.is_dir()]:
        if _queued(executor.jobs):
            ended = None
        elif ended is None:
            ended = time.monotonic()
        elif time.monotonic() - ended > _GRACE:
            array, task = divmod(missing[0] // executor.tasks_per_job, executor.max_array_size)
            job = f"{executor.jobs[array]}_{task}"
            raise UserError(f"{len(missing)} of {len(results)} shards have no result and their jobs have ended{_state(job)}",
                            where=str(Path(executor.slurm_logs_folder) / f"{job}.out"),
                            mend="see that log, then run again: the others are kept")
        time.sleep(_POLL)


def _queued(jobs: Sequence[str]) -> bool:
    """Whether Slurm has any of the jobs still waiting or running; a controller that does not answer may have."""
    asked = subprocess.run(["squeue", "--noheader", "--format=%i", f"--jobs={','.join(jobs)}"], capture_output=True, text=True, check=False)
    return bool(asked.stdout.strip()) if asked.returncode == 0 else "Invalid job id" not in asked.stderr


def _state(job: str) -> str:
    """`: TIMEOUT` and the like, where accounting knows."""
    with suppress(FileNotFoundError):
        asked = subprocess.run(["sacct", "--noheader", "--parsable2", "--allocations", "--format=State", f"--jobs={job}"],
                               capture_output=True, text=True, check=False)
        if asked.returncode == 0 and asked.stdout.strip():
            return f": {asked.stdout.split()[0]}"
    return ""
