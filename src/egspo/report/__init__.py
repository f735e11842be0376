"""A report: one self-contained HTML page drawn from the files of one or several runs, or of a comparison."""

from collections.abc import Sequence
from pathlib import Path

from egspo.report.comparison import FILE, compose_comparison
from egspo.report.figures import draw
from egspo.report.page import compose
from egspo.report.read import read_object, read_runs

__all__ = ["write_report"]


def write_report(runs: Sequence[Path], out: Path) -> Path:
    """Write the page of the given run folders to ``out`` and return its path.

    The same files give the same bytes. Several runs are drawn side by side, in the order given. What a run
    did not record (rewards in supervised fine-tuning, transcripts, evaluations) is left out. The folder of a
    comparison stands alone.

    Raises:
        ValueError: if a folder is neither, or a file of it is empty or broken.
    """
    out = Path(out)
    if out.is_dir():
        raise ValueError(f"{out}: is a folder; give the name of the HTML file to write")
    page = _page([Path(run) for run in runs])
    out.parent.mkdir(parents=True, exist_ok=True)
    # A model may write half of a surrogate pair, which has no UTF-8 form.
    out.write_bytes(page.encode("utf-8", errors="xmlcharrefreplace"))
    return out


def _page(folders: Sequence[Path]) -> str:
    compared = [folder for folder in folders if (folder / FILE).is_file()]
    if not compared:
        runs = read_runs(folders)
        return compose(runs, draw(runs))
    if len(folders) > 1:
        raise ValueError(f"report: {compared[0]} is a comparison, which is drawn alone; give one folder")
    return compose_comparison(folders[0].resolve().name, read_object(folders[0] / FILE))
