"""`leaderboard audit cosign`: a witness signs what the log has signed. For a timer to call."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from leaderboard.cli.audit_log import BROKEN, Faults, Logs, said, witness_of
from leaderboard.cli.context import environment
from leaderboard.errors import TransientError

if TYPE_CHECKING:
    from leaderboard.audit.notes import Verifier
    from leaderboard.audit.witness import Witness
    from leaderboard.model import Place


@click.command()
@click.argument("url")
@click.argument("key")
@click.argument("shards", nargs=-1, metavar="[TOPIC/PARTITION]...")
def cosign(url: str, key: str, shards: tuple[str, ...]) -> int:
    """Have the witness at URL, whose public key is KEY, cosign each shard's checkpoint.

    It is shown that the log went on from what it signed before; its cosignature is checked and kept
    beside the log, where `verify` finds it. Wants leave to write there."""
    from leaderboard.adapters.http_witness import HttpWitness

    logs, faults, verifier = Logs(environment()), Faults(), witness_of(key)
    witness = HttpWitness(url)
    for place in logs.found(shards):
        _cosign(logs, place, witness, verifier, faults)
    return faults.end()


def _cosign(logs: Logs, place: Place, witness: Witness, key: Verifier, faults: Faults) -> None:
    from leaderboard.audit import witness as asking

    try:
        seen = asking.cosign(logs.store(place), logs.open(place), witness, key)
    except (*BROKEN, TransientError) as error:
        faults.tell(f"{place}: {error}")
    else:
        said(f"{place}: {key.name} has seen {seen.size:,} entries")
