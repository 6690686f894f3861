import pytest

from convoy.launch.interface import VARIABLES, choose_interface

ROUTE = ("gl006", "10.0.0.1")


def test_the_interface_on_the_route_is_named_with_the_reason():
    choice = choose_interface({}, *ROUTE, "ib0")
    assert choice.variables == dict.fromkeys(VARIABLES, "ib0")
    assert "10.0.0.1 on ib0 is the route to gl006" in choice.reason


@pytest.mark.parametrize("name", VARIABLES)
def test_what_the_site_set_stays(name):
    choice = choose_interface({name: "eth7"}, *ROUTE, "ib0")
    assert choice.variables == {other: "ib0" for other in VARIABLES if other != name}


def test_nothing_is_chosen_where_both_are_set():
    choice = choose_interface(dict.fromkeys(VARIABLES, "eth7"), *ROUTE, "ib0")
    assert choice.variables == {} and "=eth7 as set" in choice.reason


def test_an_address_without_an_interface():
    choice = choose_interface({}, *ROUTE, None)
    assert choice.variables == {} and "no interface carries 10.0.0.1" in choice.reason
