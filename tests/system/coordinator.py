"""A coordinator as a process of its own, for tests that kill it: it asks all sites again and again.

    python coordinator.py FOLDER PORT

FOLDER holds the sites' public keys as NAME.pub. Each exchange is one line of JSON on stdout.
"""

import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from server.certificates import issue
from server.gateway import serve
from server.hub import Hub
from server.listener import Door


def main() -> None:
    folder, port = Path(sys.argv[1]), int(sys.argv[2])
    hub = Hub(folder / "state.db", folder / "flower")
    door = Door("127.0.0.1", port, issue(folder / "tls", ["127.0.0.1"]))
    with serve(hub, door, 1 << 20) as taken:
        nodes = {path.stem: hub.admit(path.read_bytes()) for path in folder.glob("*.pub")}
        sys.stdout.write(json.dumps({"port": taken, "nodes": nodes}) + "\n")
        sys.stdout.flush()
        exchange = hub.exchange(nodes)
        for number in range(10**6):
            asked = str(number).encode()
            answers = dict(exchange("echo", dict.fromkeys(nodes, asked), 20.0))
            right = sorted(site for site, answer in answers.items() if answer == asked[::-1])
            sys.stdout.write(json.dumps({"number": number, "right": right}) + "\n")
            sys.stdout.flush()
            time.sleep(0.2)


if __name__ == "__main__":
    main()
