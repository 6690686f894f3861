"""The report as a reader gets it: one file, in a real browser."""

import base64
import json
import os
import re
import shutil

import pytest

from convoy.run import charts, picture, report, story
from convoy.run.story import Point
from convoy.run.timeline import timeline

HOUR = 3600.0


def test_the_story_of_a_run_that_was_preempted_twice(preempted_run):
    run = story.read(preempted_run)
    times = timeline(run)
    assert [part.start for part in times.parts] == [None, 0, None, 1, None, 2]
    assert times.starts == 3 and len(times.stops) == 2
    text = charts.summary(run, times)
    assert text.startswith("Not finished at step 2,400 of 19,320 after 6.4 h, ")
    assert "3 starts: what ended the earlier ones was (1) signal: SIGUSR1; (2) signal" in text
    assert "312.5 samples/s, ADE 0.278 m." in text


def test_the_page_needs_nothing_beside_itself_and_is_small(preempted_run):
    text = report.page([story.read(preempted_run)])
    assert len(text.encode()) < report.MOST_BYTES
    assert not re.search(r'(src|href)="(?!data:)', text) and "http" not in text.replace(
        "http://www.w3.org/2000/svg", ""
    )
    assert text.count("<figure ") == text.count("<figcaption>") == 10
    for said in ("Predicted and actual", "5 min (0 s to 15 min)", "dataloader.params.num_workers"):
        assert said in text


def test_names_are_text_whatever_they_hold(preempted_run):
    hostile = "</script><script>alert(1)</script>"
    named = preempted_run.parents[1] / hostile.replace("/", "_") / "12"
    shutil.copytree(preempted_run, named)
    (named / "config.yaml").write_text(f"experiment_name: {hostile}\n")
    (named / "events.jsonl").write_text('{"time": 1767600700, "kind": "</script><script>x"}\n')
    text = report.page([story.read(named)])
    assert text.count("<script") == text.count("</script>") == 2


def test_a_run_with_nothing_to_show(tmp_path):
    text = report.page([story.read(tmp_path / "exp" / "1")])
    assert "Not finished." in text and "<figure" not in text


def test_a_very_long_run_stays_small(preempted_run):
    run = story.read(preempted_run)
    long = tuple(Point(step, 1 / (1 + step), 0) for step in range(3_000))
    metrics = {name: long for name in ("train/loss", "train/samples_per_s", "val/ade")}
    (preempted_run / "trajectories.png").write_bytes(b"x" * 400_000)
    many = [story.Story(run.root, launches=run.launches, metrics=metrics) for _ in range(20)]
    assert len(report.page(many).encode()) < report.MOST_BYTES


def test_thinning_keeps_the_ends_and_makes_up_no_peak():
    points = [Point(step, float(step % 7), int(step > 500)) for step in range(1000)]
    thinned = charts.thin(points, 100)
    assert len(thinned) <= 101 and thinned[-1][0] == 999
    assert max(value for _, value in thinned) <= 6


def test_the_picture(preempted_run, tmp_path):
    pytest.importorskip("matplotlib")
    path = picture.write(tmp_path / "report.png", [story.read(preempted_run)] * 2)
    assert path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 10_000


HOVER = """<script>
for (const figure of document.querySelectorAll("figure")) {
  const svg = figure.querySelector("svg"), box = svg.getBoundingClientRect();
  const at = { clientX: box.left + box.width * .6, clientY: box.top + 50, bubbles: true };
  svg.dispatchEvent(new PointerEvent("pointermove", at));
  figure.dataset.hover = figure.querySelector(".tip").textContent;
  svg.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowRight", bubbles: true }));
  figure.dataset.key = figure.querySelector(".tip").textContent;
}
document.body.dataset.wide = document.documentElement.scrollWidth - innerWidth;
</script></body>"""


@pytest.mark.parametrize("width", [390, 1400])
def test_in_a_real_browser(show, preempted_run, tmp_path, width):
    run = story.read(preempted_run)
    other = tmp_path / "exp" / "second" / "13"
    shutil.copytree(preempted_run, other)
    page = tmp_path / "report.html"
    page.write_text(report.page([run, story.read(other)]).replace("</body>", HOVER))
    document, said = show(page, width)
    assert said == "" and 'data-ready="yes"' in document
    figures = re.findall(r"<figure .*?</figure>", document, re.DOTALL)
    assert len(figures) == 14
    for figure in figures:
        assert 'role="img"' in figure and 'aria-label="' in figure and 'tabindex="0"' in figure
        hover = re.search(r'data-hover="([^"]*)"', figure)
        assert hover is not None and hover.group(1), figure[:200]
        assert re.search(r'data-key="[^"]+"', figure)
    loss = next(figure for figure in figures if 'id="loss"' in figure)
    assert re.search(r'data-hover="step \d+\nfirst/12: 0\.\d+\nsecond/13: 0\.\d+"', loss)
    shown = next(figure for figure in figures if 'id="timeline"' in figure)
    assert "start 2 for 1.9 h" in shown or "start 2 for 2.0 h" in shown
    assert int(re.search(r'data-wide="(-?\d+)"', document).group(1)) <= 0  # nothing to scroll to


def test_scores_have_their_place(preempted_run):
    """A row for each scoring, EPDMS over steps, and the worst scenes of the newest."""
    for name, score in (("step-000000100", 0.5), ("step-000000200", 0.625)):
        root = preempted_run / "scores" / "mini" / name
        root.mkdir(parents=True)
        figures = {"metrics": {"score": {"mean": score, "low": 0.25, "high": 0.75}}}
        beside = {"human_agent": {"metrics": {"score": {"mean": 0.9, "low": None, "high": None}}}}
        content = figures | {"score": score, "tokens": 8, "failed": [{}], "baselines": beside}
        (root / "summary.json").write_text(json.dumps(content))
        (root / "worst.jpg").write_bytes(name.encode())
    os.utime(preempted_run / "scores/mini/step-000000100/worst.jpg", (0, 0))
    lines = [
        {"step": 100 * n, "split": "mini", "tokens": 8 if n else 4, "score": 0.5 + n / 8}
        for n in range(3)
    ]
    history = preempted_run / "scores" / "history.jsonl"
    history.write_text("".join(json.dumps(line) + "\n" for line in lines))
    run = story.read(preempted_run)
    assert run.score == 0.75
    assert [point.step for point in run.metrics["score/epdms"]] == [100, 200]  # of the same scenes
    text = report.page([run])
    assert "62.50 [25.0, 75.0]" in text and "90.00" in text and "8 (1 failed)" in text
    assert text.count("Worst scenes of mini/step-000000200") == 1
    assert base64.b64encode(b"step-000000200").decode() in text
    assert '<figure id="epdms">' in text
