"""LISTEN/NOTIFY that notices silence, connects again, and says where something may have been missed.

One connection of its own serves any number of channels and subscribers. It proves itself: at the start by a NOTIFY
from a second connection (behind a transaction pooler LISTEN succeeds and nothing ever arrives), and then by a NOTIFY
round trip every few seconds (a `SELECT 1` would say that the socket works, not that notifications do).
"""

from steadypool.listener.buffer import Gap, Notification, Overflow
from steadypool.listener.listener import Listener, check_channel
from steadypool.listener.state import ListenerOptions, ListenerState, ListenerStats
from steadypool.listener.subscription import CatchUp, Subscription

__all__ = [
    "CatchUp",
    "Gap",
    "Listener",
    "ListenerOptions",
    "ListenerState",
    "ListenerStats",
    "Notification",
    "Overflow",
    "Subscription",
    "check_channel",
]
