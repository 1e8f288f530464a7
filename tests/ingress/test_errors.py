import pickle

import pytest

from contracts.errors import DaarionError, RateLimited


def leaves(cls=DaarionError):
    for child in cls.__subclasses__():
        yield child
        yield from leaves(child)


@pytest.mark.parametrize("leaf", list(leaves()), ids=lambda leaf: leaf.__name__)
def test_every_leaf_survives_pickling(leaf):
    error = leaf("what to change", details={"limit": 5}, retry_after_s=2.5)
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is leaf
    assert (copy.message, copy.details, copy.retry_after_s, str(copy)) == (
        "what to change",
        {"limit": 5},
        2.5,
        "what to change",
    )


def test_types_are_unique_per_meaning():
    named = {}
    for leaf in leaves():
        if "type" in vars(leaf):
            assert named.setdefault(leaf.type, leaf) is leaf, (
                f"{leaf} and {named[leaf.type]} share a type"
            )


def test_envelope_holds_what_the_contract_names():
    body = RateLimited("slow down", details={"left": 0}).envelope("req-1")
    assert body == {
        "error": {
            "type": "rate_limited",
            "message": "slow down",
            "retryable": True,
            "request_id": "req-1",
            "details": {"left": 0},
        }
    }
