# SPDX-License-Identifier: MIT
"""Operations of a workload one by one, in this process, on the plain engine."""

from spfemu.checks import check_segment
from spfemu.events import Event
from spfemu.measure import build
from spfemu.measure.plan import Plan
from spfemu.measure.workers import Workers
from spfemu.segment import Segment


class Operations:
    """Workers of a workload, set up, whose operations run when they are told to."""

    def __init__(self, workload, protocol="spf", **given):
        self.plan = Plan(workload, protocol=protocol, engine="plain", seed=7, **given)
        program = build.compose(workload, protocol, config=self.plan.config)
        self.engine = build.make_engine("plain", program)
        self.segment = Segment.create(self.plan.geometry)
        self.segment.reset(self.plan.seed)
        Workers(self.plan, self.engine, self.segment, 1e9)
        for worker in range(self.plan.nr_cpus):
            assert self.engine.call("worker_setup", self.segment.cpu(worker)) == 0

    def run(self, times, worker=0):
        """Run some operations; what they counted, by name."""
        cpu = self.segment.cpu(worker)
        before = self.segment.cpus["event"][worker].copy()
        self.engine.call("cpu_idle_exit", cpu)
        for _ in range(times):
            assert self.engine.call("worker_operation", cpu) >= 0
        self.engine.call("cpu_idle_enter", cpu)
        counted = self.segment.cpus["event"][worker] - before
        return {event.name: int(counted[event]) for event in Event}

    def violations(self):
        """End all workers; what the checks then find."""
        for call in ("cpu_idle_exit", "cpu_offline", "worker_exit"):
            for worker in range(self.plan.nr_cpus):
                self.engine.call(call, self.segment.cpu(worker))
        return check_segment(self.segment)
