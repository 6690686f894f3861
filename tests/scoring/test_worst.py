"""The picture of the worst scenes."""

from PIL import Image

from convoy.run.score_layout import ScoreDirectory
from convoy.scoring.summary import Table
from convoy.scoring.worst import _lost


def test_a_scoring_leaves_a_picture_of_its_worst_scenes(score, capsys):
    code, out = score("agent=constant_velocity_agent", "--no-baselines")
    said = capsys.readouterr()
    assert code == 0 and "no picture" not in said.err, said.err
    with Image.open(ScoreDirectory(out).worst) as picture:
        width, height = picture.size
        assert width > 800 and height > 800  # six scenes in two rows
        assert len(picture.convert("L").getcolors(1 << 16)) > 100  # cameras, not an empty sheet


def test_without_cameras_the_scores_stand_all_the_same(score, capsys, tmp_path):
    code, out = score(
        "agent=constant_velocity_agent", "--no-baselines", f"original_sensor_path={tmp_path}"
    )
    assert code == 0 and (out / "scores.csv").is_file()
    assert "note: no picture of the worst scenes: FileNotFoundError" in capsys.readouterr().err
    assert not ScoreDirectory(out).worst.exists()


def test_what_a_scene_lost_its_score_by():
    head = ",token,valid,no_at_fault_collisions,traffic_light_compliance,score"
    table = Table.parse(f"{head}\n0,a,True,0.0,0.0,0.0\n1,b,True,1.0,1.0,0.5\n2,x,,,,\n".encode())
    assert _lost(table, "a") == ": collision, red light" and _lost(table, "b") == ""
