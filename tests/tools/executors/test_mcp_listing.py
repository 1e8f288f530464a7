"""Listings of outside MCP servers: filtered entry by entry, no longer than requested; ids."""

from types import SimpleNamespace

from hypothesis import given
from hypothesis import strategies as st
from mcp_types import JSONRPCResponse

from contracts.tools.api import MAX_NAME, TOOL_ID, plain_name
from executors.mcp.client import MAX_UNREADABLE, ListingFilter
from executors.mcp.source import tool_id_in

GOOD = {"inputSchema": {"type": "object"}}


def filtered(entries, limit=3):
    listings = ListingFilter(limit)
    listings.version = "2025-06-18"
    message = JSONRPCResponse(jsonrpc="2.0", id=1, result={"tools": entries})
    listings.filter(SimpleNamespace(message=message))
    return [entry["name"] for entry in message.result["tools"]], listings


def test_a_page_is_read_to_one_beyond_the_limit():
    kept, listings = filtered(
        [{"name": f"t{number}", **GOOD} for number in range(5)] + [{"name": "bad"}]
    )
    assert kept == ["t0", "t1", "t2", "t3"]
    assert listings.unreadable == []
    assert not listings.given_up


def test_unreadable_entries_are_named_and_passed_over():
    kept, listings = filtered(
        [{"name": "bad"}, {"name": "one", **GOOD}, 7, {"name": "two", **GOOD}]
    )
    assert (kept, listings.unreadable, listings.given_up) == (["one", "two"], ["bad", "?"], False)


def test_a_page_of_nonsense_is_given_up():
    kept, listings = filtered(
        [{"name": "one", **GOOD}, *[7] * (MAX_UNREADABLE + 1), {"name": "two", **GOOD}]
    )
    assert (kept, len(listings.unreadable), listings.given_up) == (["one"], MAX_UNREADABLE, True)


@given(st.text(max_size=200), st.text(max_size=200))
def test_ids_of_outside_tools_depend_on_their_names_alone_and_differ(one, two):
    assert TOOL_ID.fullmatch(tool_id_in("outside", one))
    assert len(plain_name(tool_id_in("outside", one))) <= MAX_NAME
    assert (tool_id_in("outside", one) == tool_id_in("outside", two)) is (one == two)
