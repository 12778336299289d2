"""TensorFlow's server opens no unguarded port and uses no public address, unless the user asks for it."""

from __future__ import annotations

import pytest

from tl_dist.refusal import ExitCode, Refusal
from tl_dist.rendezvous import port_guard

ASKED = {port_guard.OPEN_PORT_VARIABLE: "1"}


@pytest.mark.parametrize("host", ["8.8.8.8", "141.20.5.1"])
def test_public_addresses_are_refused_unless_that_was_asked_for(
    host: str,
) -> None:
    with pytest.raises(Refusal, match=f"{host}, a public address") as refused:
        port_guard.refuse_public(["10.0.0.1", host], {})
    assert refused.value.code == ExitCode.UNSAFE
    port_guard.refuse_public(["10.0.0.1", host], ASKED)


@pytest.mark.parametrize("host", ["127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.7.9", "169.254.1.1"])
def test_private_addresses_are_taken(host: str) -> None:
    port_guard.refuse_public([host], {})


def test_where_the_kernel_cannot_guard_the_port_it_is_not_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_guard(own: str) -> None:
        raise OSError(92, "Protocol not available")

    monkeypatch.setattr(port_guard, "PortGuard", no_guard)
    with pytest.raises(Refusal, match="cannot be guarded here") as refused:
        port_guard.open_port_guard({}, "127.0.0.1")
    assert refused.value.code == ExitCode.UNSAFE
    assert port_guard.open_port_guard(ASKED, "127.0.0.1") is None


@pytest.mark.parametrize(
    "text", ["", "10.0.0.1", "10.0.0.1:0", "10.0.0.1:99999", "a b:1", "::1:80", "10.0.0.1:x"]
)
def test_what_is_no_address_is_no_worker(text: str) -> None:
    with pytest.raises(Refusal, match="is no address and port"):
        port_guard.parsed(text)
