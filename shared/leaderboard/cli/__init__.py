"""The command line, `leaderboard`: stacks, producing, watching, operating.

Settings come from the environment, else from `.stack.env` in the working directory. An error is
one line on standard error and exit code 1 (2: wrong use, a wrong setting).
"""

from __future__ import annotations

import logging
import sys

import click

from leaderboard.cli.api_documents import openapi
from leaderboard.cli.async_document import asyncapi
from leaderboard.cli.audit import audit
from leaderboard.cli.dead_letters import dlq
from leaderboard.cli.fraud import fraud
from leaderboard.cli.kafka_admin import acls, topics
from leaderboard.cli.manifests import manifests
from leaderboard.cli.observability import observability
from leaderboard.cli.operate import erase, tournament
from leaderboard.cli.outbox import outbox, relay
from leaderboard.cli.produce import produce
from leaderboard.cli.rebuild import rebuild
from leaderboard.cli.record import record
from leaderboard.cli.rollout import rollout
from leaderboard.cli.stacks import run, schemas, stack, token
from leaderboard.cli.trace import trace
from leaderboard.cli.watch import watch
from leaderboard.errors import LeaderboardError, SettingsError


@click.group(
    help="Real-time tournament leaderboards.",
    epilog="Settings come from the environment, else from .stack.env, which a stack writes.",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(package_name="leaderboard")
def cli() -> None:
    """The root of all commands."""


_CLUSTER = (rollout, topics, acls)
_OPERATING = (tournament, fraud, erase, record, audit, rebuild, dlq, outbox, relay, *_CLUSTER)
_WRITING = (schemas, openapi, asyncapi, observability, manifests)
for command in (stack, run, token, produce, watch, trace, *_OPERATING, *_WRITING):
    cli.add_command(command)


def main() -> None:
    """The console script."""
    # What the parts log is for services; a command tells what it did by itself.
    logging.getLogger("leaderboard").addHandler(logging.NullHandler())
    sys.exit(_run())


def _run() -> int:
    try:
        code = cli.main(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("stopped", err=True)
        return 130
    except SettingsError as error:
        click.echo(f"error: {error}", err=True)
        return 2
    except LeaderboardError as error:
        click.echo(f"error: {error}", err=True)
        return 1
    return code if isinstance(code, int) else 0
