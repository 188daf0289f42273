"""Which destinations may be allowed, and what is then allowed."""

from __future__ import annotations

import ipaddress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmrun.model.errors import Refused, UsageError
from vmrun.model.network import Allow
from vmrun.policy.addresses import denied_range, denied_ranges, parse_address
from vmrun.policy.egress import (
    allows,
    canonical_host,
    knows,
    parse_allow,
    parse_allows,
    parse_authority,
    ports_of,
    proxy_environment,
)


@pytest.mark.parametrize(
    ("text", "host", "ports"),
    [
        ("registry.example.com", "registry.example.com", (80, 443)),
        ("Registry.Example.COM.", "registry.example.com", (80, 443)),
        ("example.com:5432", "example.com", (5432,)),
        ("example.com:443,80,443", "example.com", (80, 443)),
        ("*.example.com", "*.example.com", (80, 443)),
        ("*.example.com:8443", "*.example.com", (8443,)),
        ("93.184.216.34", "93.184.216.34", (80, 443)),
        ("93.184.216.34:22", "93.184.216.34", (22,)),
        ("2606:4700::0001", "2606:4700::1", (80, 443)),
        ("[2606:4700:0::1]", "2606:4700::1", (80, 443)),
        ("[2606:4700::1]:53,853", "2606:4700::1", (53, 853)),
        ("bücher.example", "xn--bcher-kva.example", (80, 443)),
        ("xn--bcher-kva.example", "xn--bcher-kva.example", (80, 443)),
        ("my_bucket.example.com", "my_bucket.example.com", (80, 443)),
    ],
)
def test_a_rule_is_read(text: str, host: str, ports: tuple[int, ...]) -> None:
    assert parse_allow(text) == Allow(host, ports)


@pytest.mark.parametrize(
    "text",
    [
        "", "*", "*.", "*.com", "com", "db", "a..example.com", "-a.example.com", "a-.example.com",
        "example.com:", "example.com:0", "example.com:65536", "example.com:443,", "example.com:x",
        "example.com:080", "example.com:+80", "example.com:٤٤٣", "https://example.com",
        "user@example.com", "example.com/path", "ex*mple.com", "*.*.example.com", "*.93.184.216.34",
        "a.*.example.com", "example.com:80:81", "[2606:4700::1", "[example.com]:80", "[2606::1]80",
        "2606:4700::1%eth0", "[fe80::1%25lo]:80", "1.2.3", "0x5d.0xb8.0xd8.0x22", "3232235777",
        "example.0x10", "093.184.216.34", "exa mple.com", "example.com\n", "example.com\0",
        "straße.example", "a" * 64 + ".example.com", ".".join(["a" * 63] * 4) + ".com",
        "a" * 2000, "example.com:" + ",".join(map(str, range(1, 66))), "\ud800.example",
    ],
)  # fmt: skip
def test_what_is_no_destination_is_no_rule(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_allow(text)
    assert caught.value.hint


@pytest.mark.parametrize(
    "text",
    [
        "127.0.0.1", "10.1.2.3:5432", "169.254.169.254:80", "100.100.100.200", "168.63.129.16",
        "192.168.0.1", "172.31.255.255", "0.0.0.0", "255.255.255.255", "224.0.0.251", "198.18.0.1",
        "[::1]:80", "[fd00:ec2::254]:80", "[::ffff:93.184.216.34]:80", "[::93.184.216.34]:80",
        "[64:ff9b::5db8:d822]:80", "[2002:5db8:d822::1]:80", "[2001:0:5db8:d822::1]:80",
        "localhost", "a.localhost:80", "*.localhost", "printer.local", "metadata.google.internal",
        "nas.home.arpa", "*.internal", "x.onion", "LOCALHOST.",
    ],
)  # fmt: skip
def test_this_host_and_private_networks_cannot_be_allowed(text: str) -> None:
    with pytest.raises(Refused) as caught:
        parse_allow(text)
    assert caught.value.exit_status == 123


@given(st.text(max_size=60))
def test_any_text_is_a_rule_or_an_error(text: str) -> None:
    try:
        rule = parse_allow(text)
    except (UsageError, Refused):
        return
    assert parse_allow(rule.host if ":" not in rule.host else f"[{rule.host}]").host == rule.host


def test_rules_for_one_host_are_one() -> None:
    rules = parse_allows(["example.com:22", "Example.com", "93.184.216.34"])
    assert rules == (Allow("example.com", (22, 80, 443)), Allow("93.184.216.34", (80, 443)))
    assert ports_of(rules) == (22, 80, 443)


def test_rules_are_counted() -> None:
    with pytest.raises(UsageError, match="256"):
        parse_allows(f"a{n}.example.com" for n in range(300))


RULES = parse_allows(["example.com", "*.example.org:443", "93.184.216.34:22"])


@pytest.mark.parametrize(
    ("host", "port", "allowed"),
    [
        ("example.com", 443, True),
        ("example.com", 22, False),
        ("www.example.com", 443, False),
        ("example.org", 443, False),
        ("a.example.org", 443, True),
        ("a.b.example.org", 443, True),
        ("evil-example.org", 443, False),
        ("evilexample.org", 443, False),
        ("example.org.evil.net", 443, False),
        ("93.184.216.34", 22, True),
        ("93.184.216.34", 443, False),
        ("93.184.216.35", 22, False),
    ],
)
def test_only_what_a_rule_names_is_allowed(host: str, port: int, allowed: bool) -> None:
    assert allows(RULES, host, port) is allowed
    assert not allows((), host, port)


def test_a_name_is_known_at_any_port() -> None:
    assert knows(RULES, "93.184.216.34")
    assert knows(RULES, "x.example.org")
    assert not knows(RULES, "example.net")


@pytest.mark.parametrize(
    ("text", "host"),
    [
        ("WWW.Example.com.", "www.example.com"),
        ("2606:4700:0:0::1", "2606:4700::1"),
        ("example.com..", None), (".example.com", None), ("", None), (".", None),
        ("0177.0.0.1", None), ("0x7f000001", None), ("2130706433", None), ("127.1", None),
        ("127.0.0.1.", None), ("1.1.1.256", None), ("fe80::1%eth0", None), ("[::1]", None),
        ("a b", None), ("ex\u212Aample.com", None), ("１２７.0.0.1", None), ("a\0b", None),
    ],
)  # fmt: skip
def test_a_host_has_one_form(text: str, host: str | None) -> None:
    assert canonical_host(text) == host


@pytest.mark.parametrize(
    ("text", "default", "expected"),
    [
        ("example.com", 80, ("example.com", 80)),
        ("example.com", None, None),
        ("example.com:443", None, ("example.com", 443)),
        ("[2606:4700::1]:443", None, ("2606:4700::1", 443)),
        ("2606:4700::1", 80, None),
        ("user@example.com", 80, None),
        ("user:pw@example.com", 80, None),
        ("example.com:", 80, None),
        ("example.com:443:80", 80, None),
        ("example.com@evil.net", 80, None),
        ("example.com%2eevil.net", 80, None),
        ("example.com\\evil.net", 80, None),
        ("[example.com]:80", 80, None),
    ],
)
def test_an_authority_has_one_meaning(
    text: str, default: int | None, expected: tuple[str, int] | None
) -> None:
    assert parse_authority(text, default) == expected


def test_every_denied_range_is_denied_from_end_to_end() -> None:
    for text, _ in denied_ranges():
        network = ipaddress.ip_network(text)
        assert denied_range(network[0])
        assert denied_range(network[-1])


@given(st.ip_addresses())
def test_what_passes_is_global(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> None:
    if denied_range(address) is None:
        assert address.is_global
        assert not address.is_multicast
        assert not address.is_reserved


@pytest.mark.parametrize("text", ["1.1.1.1", "93.184.216.34", "2606:4700::1111", "2a00:1450::1"])
def test_public_addresses_pass(text: str) -> None:
    address = parse_address(text)
    assert address is not None
    assert denied_range(address) is None


def test_programs_are_told_of_the_proxies() -> None:
    variables = dict(proxy_environment("10.88.0.1", ["db", "cache"]))
    assert variables["HTTPS_PROXY"] == variables["https_proxy"] == "http://10.88.0.1:3128"
    assert variables["ALL_PROXY"] == "socks5h://10.88.0.1:1080"
    assert variables["no_proxy"] == "localhost,127.0.0.1,::1,db,cache"
    assert dict(proxy_environment("10.88.0.1"))["NO_PROXY"] == "localhost,127.0.0.1,::1"


def test_the_reference_lists_every_denied_range() -> None:
    page = Path(__file__).resolve().parents[2] / "docs/reference/network.md"
    rows = [
        tuple(row[2:-2].split(" | ")) for row in page.read_text().splitlines() if row[:2] == "| "
    ]
    assert set(denied_ranges()) <= set(rows)
