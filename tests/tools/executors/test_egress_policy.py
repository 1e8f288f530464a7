"""The egress policy: no spelling of a forbidden address passes; rules open just what they say."""

import ipaddress
from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.tools.api import EgressRule
from executors.http.addresses import is_ambiguous_number, is_never, is_public
from executors.http.egress import EgressDenied, EgressPolicy, parse_target

EVERYWHERE = (EgressRule(cidr="0.0.0.0/0"), EgressRule(cidr="::/0"))
FORBIDDEN = [
    ipaddress.ip_network(text)
    for text in (
        "169.254.0.0/16",
        "0.0.0.0/8",
        "224.0.0.0/3",
        "168.63.129.16/32",
        "100.100.100.200/32",
        "fe80::/10",
        "ff00::/8",
    )
]
PRIVATE = [
    ipaddress.ip_network(text)
    for text in (
        "10.0.0.0/8",
        "127.0.0.0/8",
        "172.16.0.0/12",
        "192.168.0.0/16",
        "100.64.0.0/10",
        "fc00::/7",
    )
]

v4 = st.integers(0, 2**32 - 1).map(IPv4Address)
v6 = st.integers(0, 2**128 - 1).map(IPv6Address)
forbidden = st.sampled_from(FORBIDDEN).flatmap(
    lambda net: st.integers(0, net.num_addresses - 1).map(lambda at: net[at])
)
private = st.sampled_from(PRIVATE).flatmap(
    lambda net: st.integers(0, net.num_addresses - 1).map(lambda at: net[at])
)
EMBEDDINGS = {
    "mapped": lambda a: IPv6Address((0xFFFF << 32) | int(a)),
    "compatible": lambda a: IPv6Address(int(a)),
    "translated": lambda a: IPv6Address((0xFFFF << 48) | int(a)),
    "nat64": lambda a: IPv6Address(int(IPv6Address("64:ff9b::")) | int(a)),
    "nat64-local": lambda a: IPv6Address(int(IPv6Address("64:ff9b:1::")) | int(a)),
    "6to4": lambda a: IPv6Address((0x2002 << 112) | (int(a) << 80)),
    "teredo": lambda a: IPv6Address((0x20010000 << 96) | (int(a) ^ 0xFFFFFFFF)),
}


def spellings(address: IPv4Address) -> list[str]:
    number, parts = int(address), list(address.packed)
    return [
        str(number),
        hex(number),
        f"0{number:o}",
        ".".join(f"0{part:o}" for part in parts),
        ".".join(hex(part) for part in parts),
        f"{parts[0]}.{int.from_bytes(bytes(parts[1:]), 'big')}",
        f"{parts[0]}.{parts[1]}.{parts[2] * 256 + parts[3]}",
        f"{parts[0]}.{parts[1]}.{parts[2]}.0{parts[3]:o}",
    ]


@given(forbidden)
def test_no_rule_opens_addresses_that_are_never_reached(address):
    assert is_never(address)
    with pytest.raises(EgressDenied):
        EgressPolicy(EVERYWHERE).admit("h", 80, [address])


@given(v4, st.sampled_from(sorted(EMBEDDINGS)))
def test_an_ipv4_address_inside_an_ipv6_one_is_never_public(address, form):
    disguised = EMBEDDINGS[form](address)
    if disguised == IPv6Address("::1"):
        return
    assert not is_public(disguised)
    if form.startswith("nat64") and is_public(address):
        return  # only a rule that names the prefix opens it
    with pytest.raises(EgressDenied):
        EgressPolicy(EVERYWHERE).admit("h", 80, [disguised])


@given(private)
def test_private_addresses_need_a_rule_that_names_their_network(address):
    with pytest.raises(EgressDenied):
        EgressPolicy().admit("h", 80, [address])
    with pytest.raises(EgressDenied):
        EgressPolicy((EgressRule(host="h"),)).admit("h", 80, [address])
    if not is_never(address):
        assert EgressPolicy((EgressRule(host="h", cidr=f"{address}"),)).admit(
            "h", 80, [address]
        ) == [address]


@given(st.one_of(v4, v6))
def test_public_means_global_and_nothing_special(address):
    if is_public(address):
        assert address.is_global
        assert not address.is_private
        assert not address.is_multicast
        assert not address.is_link_local
        assert EgressPolicy().admit("h", 80, [address]) == [address]


@given(v4)
def test_other_spellings_of_an_ipv4_address_are_refused(address):
    for text in spellings(address):
        if text == str(address):
            continue
        assert is_ambiguous_number(text)
        with pytest.raises(EgressDenied):
            parse_target(f"http://{text}/tool")


@given(st.text(min_size=1, max_size=40))
def test_parsing_a_target_refuses_or_gives_a_host(text):
    try:
        target = parse_target(text)
    except EgressDenied:
        return
    assert target.url.scheme in {"http", "https"}
    assert target.host == target.host.lower()
    assert target.url.user is None


@pytest.mark.parametrize(
    "target",
    [
        "http://user:secret@example.org/",
        "http://example.org@127.0.0.1/",
        "http://example.org\\@127.0.0.1/",
        "http://@127.0.0.1/",
        "ftp://example.org/",
        "file:///etc/passwd",
        "http:///nohost",
        "http://example.org:0/",
        "http://example.org:99999/",
        "http://127.1/",
        "http://2130706433/",
        "http://0x7f000001/",
        "http://017700000001/",
        "http://0177.0.0.1/",
        "http://0x7f.0.0.1./",
        "http://1.2.3.4.5/",
        "http://[fe80::1%25eth0]/",
        "http://[::1%eth0]/",
        "http://exa\nmple.org/",
        "http://example.org/#fragment",
        "//example.org/",
        "example.org",
        "",
        "http://" + "a" * 300 + "/",
    ],
)
def test_malformed_targets_are_refused(target):
    with pytest.raises(EgressDenied):
        parse_target(target)


@pytest.mark.parametrize(
    "target",
    [
        "http://169.254.169.254/latest/meta-data",
        "http://[fd00:ec2::254]/",
        "http://[::ffff:169.254.169.254]/",
        "http://[::ffff:a9fe:a9fe]/",
        "http://[64:ff9b::a9fe:a9fe]/",
        "http://[::]/",
        "http://0.0.0.0/",
        "http://100.100.100.200/",
        "http://[fe80::1]/",
    ],
)
def test_forbidden_literals_are_refused_before_anything_is_sent(target):
    with pytest.raises(EgressDenied):
        EgressPolicy(EVERYWHERE).check(parse_target(target))


def test_rules_match_by_host_port_and_network_together():
    rule = EgressRule(host="*.example.org", port=8443, cidr="10.1.0.0/16")
    policy = EgressPolicy((rule,))
    inside, outside = IPv4Address("10.1.2.3"), IPv4Address("10.2.0.1")
    assert policy.admit("a.example.org", 8443, [inside, outside]) == [inside]
    for host, port, address in [
        ("example.org", 8443, inside),
        ("a.example.org", 443, inside),
        ("a.example.org", 8443, outside),
    ]:
        with pytest.raises(EgressDenied):
            policy.admit(host, port, [address])
    with pytest.raises(EgressDenied):
        policy.check(parse_target("https://aexample.org:8443/"))


@pytest.mark.parametrize("cidr", ["", "10.0.0.0/33", "10.0.0/8", "10.0.0.0/8/8", "localhost"])
def test_a_rule_whose_network_is_malformed_is_refused(cidr):
    """It would match nothing, silently."""
    with pytest.raises(ValueError, match="cidr"):
        EgressRule(host="h", cidr=cidr)


def test_a_ceiling_narrows_what_a_tool_allows_itself():
    mine, theirs = EgressRule(host="h", cidr="10.0.0.0/8"), EgressRule(cidr="10.1.0.0/16")
    policy = EgressPolicy((mine,), (theirs,))
    assert policy.admit("h", 80, [IPv4Address("10.1.0.1")])
    with pytest.raises(EgressDenied):
        policy.admit("h", 80, [IPv4Address("10.2.0.1")])
    assert EgressPolicy((), (theirs,)).admit("other", 80, [IPv4Address("10.1.0.1")])
    with pytest.raises(EgressDenied):
        EgressPolicy((), (theirs,)).admit("other", 80, [IPv4Address("8.8.8.8")])


def test_a_name_that_mixes_in_a_metadata_address_is_refused_whole():
    with pytest.raises(EgressDenied):
        EgressPolicy().admit("h", 80, [IPv4Address("8.8.8.8"), IPv4Address("169.254.169.254")])
