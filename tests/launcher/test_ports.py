"""Ports that stay the same from run to run while they are free."""

import json
import socket

import pytest

from launcher.ports import free_ports, free_range, is_free, sticky_port


def test_a_port_is_kept_while_it_is_free(tmp_path):
    file = tmp_path / "ports.json"
    port = sticky_port(file, "postgres")
    assert sticky_port(file, "postgres") == port
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        assert not is_free(port)
        assert sticky_port(file, "postgres") != port


@pytest.mark.parametrize("content", ["", "[]", '{"postgres": "x"}', '{"postgres": 700000}'])
def test_a_broken_file_is_no_hindrance(tmp_path, content):
    (tmp_path / "ports.json").write_text(content)
    port = sticky_port(tmp_path / "ports.json", "postgres")
    assert json.loads((tmp_path / "ports.json").read_text()) == {"postgres": port}


def test_a_range_with_a_busy_port_is_passed_over():
    port = next(port for port in free_ports(20) if is_free(port + 1))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        assert free_range(port, port + 1, 1) == (port + 1, port + 1)
        assert free_range(port, port, 1) == (
            port,
            port,
        )  # the range is returned anyway; its user tries the next port
