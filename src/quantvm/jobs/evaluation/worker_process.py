"""The process of a worker: reads requests, answers, and ends with its driver. The other end is `crew.py`.

Requests come pickled through stdin, answers go through what was stdout. What a library prints goes to stderr.
"""

from __future__ import annotations

import os
from multiprocessing.connection import Connection

from quantvm.jobs.child_process import end_with_parent


def main() -> None:
    """Serves until stdin ends."""
    end_with_parent()
    requests, answers = Connection(os.dup(0), writable=False), Connection(os.dup(1), readable=False)
    os.dup2(2, 1)
    from quantvm.jobs.evaluation.unit_worker import UnitWorker

    worker = UnitWorker()
    while True:
        try:
            request = requests.recv()
        except EOFError:
            # An engine's threads may fail at a normal exit, and nothing is left to be saved.
            os._exit(0)
        answers.send(worker.answer(request))


if __name__ == "__main__":
    main()
