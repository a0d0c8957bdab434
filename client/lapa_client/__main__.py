"""lapa-client ws://HOST:PORT about | dry-run EPISODES [--execute N]"""

from __future__ import annotations

import argparse
import json
import sys

from lapa_client.client import Client, Gone, Refused
from lapa_client.recorded import compare, read_episodes, table


def main(arguments: list[str] | None = None) -> None:
    """Describe a server, or compare it with recorded episodes. Exit code 1 and one line on errors."""
    parser = argparse.ArgumentParser(prog="lapa-client", description="The robot's side of a policy server.")
    parser.add_argument("address", help="ws://HOST:PORT")
    parser.add_argument("--timeout", type=float, default=5.0, help="seconds that an answer may take")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("about", help="what the server says of itself")
    dry = commands.add_parser("dry-run", help="compare its actions with recorded ones; nothing moves")
    dry.add_argument("episodes", help="folder of .npz files, or NAME:PATH where lapa is installed")
    dry.add_argument("--execute", type=int, help="steps after which it is asked again (as the server says)")
    told = parser.parse_args(arguments)
    try:
        with Client(told.address, timeout=told.timeout) as client:
            if told.command == "about":
                print(json.dumps({k: v for k, v in client.about.items() if k not in HIDDEN}, indent=2))
                return
            found = compare(client, read_episodes(told.episodes), told.execute)
            print(table(found, list((client.about.get("action") or {}).get("names", ()))))
    except (Gone, Refused, ValueError, OSError) as error:
        sys.exit(f"lapa-client: {error}")


HIDDEN = ("type", "payload", "seq", "timestamp")  # what a client of vla-eval reads


if __name__ == "__main__":
    main()
