"""
Two listeners: one for the world, one for operators.

``public.py`` has what providers may reach, ``operator.py`` what only we may, ``guard.py`` decides who is "we",
``page.py`` and ``headline.py`` put numbers into words, ``listener.py`` is the socket under each, and ``porter.py``
stands at its door.
"""

from daemon.web.guard import Guard
from daemon.web.listener import Listener
from daemon.web.operator import operator_app
from daemon.web.public import public_listener

__all__ = ["Guard", "Listener", "operator_app", "public_listener"]
