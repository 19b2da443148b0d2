"""A bare Prefect flow of some cached tasks: `python -m benchmarks.sides.bare_flow NUMBER`.

What Prefect itself costs: server, flow run, and per task a look into the cache.
"""

import sys

from prefect import flow, task
from prefect.cache_policies import INPUTS


@task(cache_policy=INPUTS, persist_result=True)
def double(number: int) -> int:
    """Return twice the number."""
    return 2 * number


@flow
def bare(tasks: int) -> int:
    """Submit so many tasks, one after the other."""
    return sum(double.submit(number).result() for number in range(tasks))


if __name__ == "__main__":
    bare(int(sys.argv[1]))
