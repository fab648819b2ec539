"""A network that can be cut, for tests of what is on both ends of it; it asserts nothing."""

import contextlib
import socket
import threading


class Cable:
    """A TCP forwarder: cut, its connections are reset, and new ones are refused."""

    def __init__(self, port: int) -> None:
        self._there, self._lines = port, list[socket.socket]()
        self.port = 0
        self.mend()

    def cut(self) -> None:
        self._server.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts
        self._server.close()
        for line in self._lines:
            with contextlib.suppress(OSError):
                line.shutdown(socket.SHUT_RDWR)
                line.close()
        self._lines.clear()

    def mend(self) -> None:
        self._server = socket.create_server(("127.0.0.1", self.port))
        self.port = self._server.getsockname()[1]
        threading.Thread(target=self._accept, args=(self._server,), daemon=True).start()

    def close(self) -> None:
        self.cut()

    def _accept(self, server: socket.socket) -> None:
        while True:
            try:
                here, _ = server.accept()
            except OSError:  # cut
                return
            try:
                there = socket.create_connection(("127.0.0.1", self._there))
            except OSError:  # nobody there
                here.close()
                continue
            self._lines += [here, there]
            for pair in ((here, there), (there, here)):
                threading.Thread(target=self._carry, args=pair, daemon=True).start()

    def _carry(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
        for line in (source, target):
            with contextlib.suppress(OSError):
                line.shutdown(socket.SHUT_RDWR)
