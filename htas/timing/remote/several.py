"""Several devices at once: each must be there and free, and none may be another one by a second address."""

from collections.abc import Sequence
from contextlib import ExitStack

from htas.errors import UserError
from htas.timing.remote.device import Device, device


def check_all(hosts: Sequence[str]) -> None:
    """Hold all devices for a moment, at the same time, before any work begins.

    Raises UserError, which names the device, where one cannot be reached or is read by another program; and where two
    hosts are one device.
    """
    held: list[Device] = []
    with ExitStack() as stack:
        for host in hosts:
            each = device(host)
            stack.enter_context(each.connected())
            try:
                each.hold()
            except UserError as error:
                if (same := _holder(held, str(error))) is None:
                    raise
                raise UserError(
                    f"target.host names one device twice: {same} and {each} are both "
                    f"{each.facts.machine['measured on']}; leave one out, or give each cores and a lock of its own, as "
                    "exec:env HTAS_LOCK=/tmp/second taskset -c 2,3 python3"
                ) from error
            held.append(each)


def _holder(held: Sequence[Device], refusal: str) -> Device | None:
    """The device whose agent, started here, is the one that a refusal names."""
    return next((each for each in held if f"process {each.facts.pid}," in refusal), None)
