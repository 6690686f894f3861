"""A profile on one page: profile.html, which needs nothing beside itself, and profile.png."""

import base64
from collections.abc import Iterator
from html import escape
from pathlib import Path

from convoy.run.charts import COLOURS
from convoy.run.trace import Breakdown

IDLE = "#b8bfc8"
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
  color: #1a1f26; background: #fff }
@media (prefers-color-scheme: dark) { body { color: #e6e9ed; background: #14181d } }
.lead { font-size: 1.15rem } table { border-collapse: collapse; width: 100% }
td, th { padding: .2rem .6rem; text-align: left; vertical-align: top } .n { text-align: right }
td.name { overflow-wrap: anywhere; font-size: .85rem } img { max-width: 100% }
.bar { height: .8rem; background: #0072b2 } td.wide { width: 45% }
"""


def parts(found: Breakdown) -> list[tuple[str, float, str]]:
    """What a step consists of: name, milliseconds, colour."""
    rest = "the host has not launched" if found.on_gpu else "the rest of the host's time"
    return [
        ("computing", found.compute, COLOURS[0]),
        ("all-reduce that nothing hides", found.communication_shown, COLOURS[3]),
        ("copies that nothing hides", found.copies, COLOURS[4]),
        ("waiting for data", found.waits_for_data, COLOURS[1]),
        (rest, found.host_gaps, IDLE),
    ]


def write(path: Path, found: Breakdown, title: str, trace: str) -> Path:
    """The page, with the picture in it where profile.png lies beside it."""
    picture = path.with_suffix(".png")
    path.write_text("\n".join(_lines(found, title, trace, picture)))
    return path


def _lines(found: Breakdown, title: str, trace: str, picture: Path) -> Iterator[str]:
    yield f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title>'
    yield '<meta name="viewport" content="width=device-width">'
    yield f"<style>{STYLE}</style><h1>{escape(title)}</h1>"
    yield f'<p class="lead">{escape(found.verdict())}</p><p>{escape(found.advice())}</p>'
    where = "the GPU's own time" if found.on_gpu else "the host's time (no GPU)"
    graph = ", launched as one CUDA graph" if found.one_graph else ""
    yield f"<p>{found.steps} steps of {found.step:.2f} ms{graph}; {where}.</p>"
    if picture.is_file():
        content = base64.b64encode(picture.read_bytes()).decode()
        yield (
            f'<img alt="A step of {found.step:.2f} ms: {escape(_spoken(found))}" '
            f'src="data:image/png;base64,{content}">'
        )
    yield "<h2>A step</h2><table><tr><th>part<th class=n>ms<th class=n>share<th></tr>"
    for name, value, colour in parts(found):
        yield _row(name, value, value / found.step, colour)
    yield "</table>"
    if found.communication:
        yield (
            f"<p>All-reduce takes {found.communication:.2f} ms of a step; "
            f"{found.share_hidden:.0%} of it is hidden behind computing.</p>"
        )
    total = sum(found.kinds.values()) or 1.0
    yield "<h2>Kernels by kind</h2><table><tr><th>kind<th class=n>ms<th class=n>share<th></tr>"
    for name, value in found.kinds.items():
        yield _row(name, value, value / total, COLOURS[0])
    yield "</table><h2>The longest kernels</h2><table><tr><th>name<th>kind<th class=n>ms a step"
    yield "<th class=n>calls a step</tr>"
    for kernel in found.top:
        yield (
            f'<tr><td class="name">{escape(kernel.name[:160])}<td>{escape(kernel.kind)}'
            f"<td class=n>{kernel.ms:.3f}<td class=n>{kernel.calls:.1f}</tr>"
        )
    yield "</table><h2>The host's own time</h2><table><tr><th>part<th class=n>ms<th><th></tr>"
    for name, value in found.host_parts.items():
        yield _row(name, value, value / found.step, IDLE)
    yield f"</table><p>Trace, for ui.perfetto.dev or chrome://tracing: {escape(trace)}</p>"


def _row(name: str, value: float, share: float, colour: str) -> str:
    width = min(100.0, 100 * share)
    return (
        f"<tr><td>{escape(name)}<td class=n>{value:.2f}<td class=n>{share:.0%}"
        f'<td class=wide><div class=bar style="width:{width:.1f}%;background:{colour}"></div></tr>'
    )


def _spoken(found: Breakdown) -> str:
    return ", ".join(f"{name} {value:.2f} ms" for name, value, _ in parts(found))


def draw(path: Path, found: Breakdown, title: str) -> Path:
    """profile.png. Raises ImportError without matplotlib."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (above, below) = pyplot.subplots(2, 1, figsize=(10, 5), height_ratios=(1, 3))
    left = 0.0
    for name, value, colour in parts(found):
        above.barh(0, value, left=left, color=colour, label=f"{name} {value / found.step:.0%}")
        left += value
    above.set_yticks([])
    above.set_xlabel("ms of a step", fontsize=8)
    above.legend(fontsize=7, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False)
    kinds = list(found.kinds.items())[:10][::-1]
    below.barh([name for name, _ in kinds], [value for _, value in kinds], color=COLOURS[0])
    below.set_xlabel("ms of a step, kernels by kind", fontsize=8)
    for axis in (above, below):
        axis.tick_params(labelsize=8)
    figure.suptitle(f"{title}\n{found.verdict()}", fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    return path
