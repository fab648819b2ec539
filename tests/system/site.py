"""A site as a process of its own, for tests that kill it: it works for a while on each message.

    python site.py FOLDER PORT NODE SECONDS

FOLDER holds authority.pem and node.key. Each message makes one line on stdout.
"""

import sys
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from client.app import make_app
from client.channel import Address
from client.fleet import Fleet, load_key


def main() -> None:
    folder, port, node, seconds = Path(sys.argv[1]), *map(int, sys.argv[2:5])

    def answer(kind: str, number: int, payload: bytes) -> bytes:
        sys.stdout.write(kind + "\n")
        sys.stdout.flush()
        time.sleep(seconds)
        return payload[::-1]

    address = Address("127.0.0.1", port, (folder / "authority.pem").read_bytes())
    fleet = Fleet(address, load_key(folder / "node.key"), node, 1 << 20, folder)
    sys.stdout.write("ready" + "\n")
    sys.stdout.flush()
    fleet.serve(make_app(["echo"], answer), ["echo"], threading.Event())


if __name__ == "__main__":
    main()
