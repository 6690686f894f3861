import os

from convoy.data import pool


def test_processes_have_one_thread_in_their_libraries_and_this_one_keeps_its_own(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        found = dict(pool.run(os.getenv, name, ["unset", "unset too"], workers=2))
        assert found == {"unset": "1", "unset too": "1"}
    assert os.environ["OMP_NUM_THREADS"] == "7" and "MKL_NUM_THREADS" not in os.environ
