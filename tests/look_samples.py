"""Sessions and servers of `dvt-fast look` for its tests."""

import contextlib
import threading
import time

from dvt_fast.look.server import Address, listen, make_app, make_server


def settled(ask, seconds=5.0):
    """What `ask` says as soon as it is neither waiting nor working."""
    end = time.monotonic() + seconds
    while (state := ask())["state"] in ("waiting", "working"):
        assert time.monotonic() < end, state
        time.sleep(0.005)
    return state


@contextlib.contextmanager
def serving(session, token=None):
    """The address of a server of `session`, while it runs."""
    listener = listen("127.0.0.1", 0)
    address = Address("127.0.0.1", listener.getsockname()[1], token)
    server = make_server(make_app(session, address))
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    try:
        yield address.url
    finally:
        server.should_exit = True
        thread.join(10)
        session.close()
