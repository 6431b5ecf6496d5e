# SPDX-License-Identifier: Apache-2.0
"""For processes that keep time."""

import os


def urgent():
    """In a new process: go before others, since who is late by milliseconds misses his slot.

    Where that is not permitted, it takes its turn.
    """
    try:
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    except PermissionError:
        pass
