from convoy.training.speed.statements import fingerprint


def test_what_is_not_a_function_with_a_source_has_none():
    assert fingerprint([None]) is None
    assert fingerprint([len]) is None
    named: dict[str, object] = {}
    exec("def made():\n    return 1", named)
    assert fingerprint([named["made"]]) is None
    assert fingerprint([fingerprint]) is not None
