"""Peak of the memory that torch's CPU allocator handed out, as its profiler saw it: independent of egspo."""

import gc
from collections.abc import Callable

from torch.profiler import ProfilerActivity, profile


def peak_allocated(work: Callable[[], object]) -> int:
    """The most bytes that ``work`` had allocated at a time, beyond what was there before."""
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        work()
    events = (e for e in seen.profiler.kineto_results.events() if e.name() == "[memory]")
    # A stable sort: events of the same nanosecond stay in the order in which they were recorded.
    now = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak
