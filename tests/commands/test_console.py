from convoy.commands import console


def test_lines_say_how_much_is_left_by_what_was_done_here(capsys, monkeypatch):
    monkeypatch.setattr(console, "SECONDS_BETWEEN_LINES", 0.0)
    clock = iter(float(second) for second in range(0, 100, 10))
    monkeypatch.setattr(console.time, "monotonic", lambda: next(clock))
    with console.progress("shards") as shown:
        shown.show(50, 100, "7 samples")  # an earlier start did these
        shown.show(60, 100, "9 samples")
        shown.show(100, 100)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "7 samples; 50 of 100 shards, an unknown time left",
        "9 samples; 60 of 100 shards, about 80 s left",
    ]


def test_advancing_counts_from_nothing(capsys, monkeypatch):
    monkeypatch.setattr(console, "SECONDS_BETWEEN_LINES", 0.0)
    with console.progress("frames", 4) as shown:
        for _ in range(4):
            shown.advance(1)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(",")[0] for line in lines] == [f"{n} of 4 frames" for n in (1, 2, 3)]


def test_tables_in_logs_are_not_squeezed(capsys):
    console.console().print("x" * 150)
    assert capsys.readouterr().out == "x" * 150 + "\n"
