"""``python -m windlass.local --state DIR``: run a local cloud in the foreground."""

from __future__ import annotations

import argparse
import errno
import faulthandler
import json
import logging
import os
import signal
import socket
import sqlite3
import sys
import threading
from pathlib import Path


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m windlass.local", description="An AWS-shaped server on this machine."
    )
    parser.add_argument(
        "--state", type=Path, default=Path(".windlass"), help="folder for its state (default: %(default)s)"
    )
    parser.add_argument("--port", type=int, default=0, help="0, the default, takes a free one")
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on; whoever reaches it can run programs here"
    )
    parser.add_argument(
        "--speed", type=float, default=1, metavar="N", help="alarm periods, bakes and schedules run N times faster"
    )
    parser.add_argument("--enforce-iam", action="store_true", help="refuse what no policy allows")
    parser.add_argument("--lifeline", type=int, metavar="FD", help="end when this file descriptor reads EOF")
    parser.add_argument("--ready", type=int, metavar="FD", help="write one line of JSON with url and pid there when up")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    faulthandler.register(signal.SIGUSR1)  # kill -USR1: what every thread is at, into server.log
    state = options.state.resolve()

    from windlass.errors import WindlassError
    from windlass.local.server import Server, claimed, write_record

    try:
        with claimed(state):
            server = Server(
                state, port=options.port, host=options.host, speed=options.speed, enforce_iam=options.enforce_iam
            )
            for signum in (signal.SIGTERM, signal.SIGINT):
                signal.signal(signum, lambda *_: server.stop())
            if options.lifeline is not None:
                threading.Thread(target=_watch, args=(options.lifeline, server.stop), daemon=True).start()
            record = write_record(state, server.url)
            line = json.dumps({"url": server.url, "pid": os.getpid()}) + "\n"
            if options.ready is None:
                sys.stdout.write(line)
                sys.stdout.flush()
            else:
                os.write(options.ready, line.encode())
                os.close(options.ready)
            try:
                server.run()
            finally:
                record.unlink(missing_ok=True)
    except BlockingIOError:
        sys.stderr.write(
            f"Another local cloud uses the state folder {state}. End it (windlass local down), or choose another folder.\n"
        )
        return 1
    except WindlassError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    except (OSError, sqlite3.Error) as error:
        what = (
            f"listen on {options.host}:{options.port}" if _is_about_addresses(error) else f"keep its state in {state}"
        )
        sys.stderr.write(f"The local cloud cannot {what}: {getattr(error, 'strerror', None) or error}\n")
        return 1
    return 0


def _is_about_addresses(error: Exception) -> bool:
    if isinstance(error, OSError):
        taken = error.errno in (errno.EADDRINUSE, errno.EADDRNOTAVAIL)
        return taken or isinstance(error, socket.gaierror) or (error.errno == errno.EACCES and error.filename is None)
    return False


def _watch(fd: int, stop: object) -> None:
    while os.read(fd, 1024):
        pass
    stop()  # type: ignore[operator]


if __name__ == "__main__":
    # Threads that wait on a client's socket must not hold up the end.
    code = main()
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
