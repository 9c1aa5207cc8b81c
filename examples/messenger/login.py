"""POST /login: a name and a password for a signed token."""

from __future__ import annotations

import json

from examples.messenger.directory import Directory
from goim_core import Request, Response
from goim_core.auth import SignedTokenAuth
from goim_core.clock import Clock, SystemClock
from goim_core.http_door import Routes, error
from goim_core.protocol import EXTENSION_OPS

from examples.messenger.hooks import Message

HOURS = 12
ACCEPTS = [*EXTENSION_OPS, *Message]
