"""Methods against each other: one base, one data order, one evaluation, one search for all, one budget."""


class RunFailed(RuntimeError):
    """A run of a comparison ended otherwise than by divergence."""
