"""Makes the README's picture: the example chat on a desktop and on a phone.

    python -m tests.e2e.picture docs/chat.png

It starts the example on its usual ports, so no other may run at the time.
"""

from __future__ import annotations

import sys
import urllib.request
from base64 import b64encode
from pathlib import Path

from playwright.sync_api import Browser, expect

from tests.e2e.browser import HOW_TO_GET_ONE, ChatServer, Visitor, browser, chromium

SAID = (
    ("Ada", "Morning! The new build is on the test servers."),
    ("Grace", "Great, I can try it on the train."),
    ("Ada", "Perfect. Go through a tunnel, will you?"),
    ("Grace", "Two so far. It comes back by itself."),
    ("curl", "Build 214 is live. Thank you, everyone!"),
    ("Grace", "That was fast. Who pushed this?"),
    ("Ada", "The deploy script, with one line of curl."),
)

SHEET = """<!doctype html>
<style>
  body { margin: 0; width: 1400px; height: 820px; position: relative; overflow: hidden;
         background: #ffd23f; }
  img { display: block; }
  div { position: absolute; overflow: hidden; }
  .desktop { left: 40px; top: 48px; width: 956px; border-radius: 16px; background: #26282d;
             box-shadow: 0 24px 60px -12px #00000073; }
  .desktop::before { content: ""; display: block; width: 12px; height: 12px; margin: 12px 16px;
                     border-radius: 50%; background: #ff5f57;
                     box-shadow: 20px 0 #febc2e, 40px 0 #28c840; }
  .desktop img { width: 956px; }
  .phone { right: 40px; top: 88px; width: 324px; border-radius: 44px; border: 10px solid #0b0c0e;
           background: #16171a; box-shadow: 0 28px 60px -10px #000000a6; }
  .phone img { width: 324px; border-radius: 33px; }
</style>
<div class="desktop"><img src="DESKTOP"></div>
<div class="phone"><img src="PHONE"></div>
"""


def main() -> None:
    program = chromium()
    if program is None:
        sys.exit(HOW_TO_GET_ONE)
    server = ChatServer(tcp=3101, ws=3102, http=3111)
    try:
        with browser(program) as window:
            Path(sys.argv[1]).write_bytes(_picture(window, server.url))
    finally:
        server.close()


def _picture(window: Browser, url: str) -> bytes:
    desktop = window.new_context(
        viewport={"width": 956, "height": 688}, device_scale_factor=1.5, locale="en-GB"
    )
    phone = window.new_context(
        viewport={"width": 390, "height": 764}, device_scale_factor=1.5, is_mobile=True, locale="en-GB"
    )
    people = {}
    for name, mid, context in (("Ada", 8, desktop), ("Grace", 14, phone)):
        # The user's number decides the colour of the badge.
        context.add_init_script(f"sessionStorage.setItem('goim-chat-mid', {mid})")
        people[name] = Visitor(context, url, "lobby", name)
    for author, text in SAID:
        if author in people:
            people[author].says(text)
        else:
            address = f"{url}goim/push/room?operation=1000&type=chat&room=lobby"
            urllib.request.urlopen(address, text.encode()).close()
        for person in people.values():
            person.sees(text)
            expect(person.at("messages").locator("[data-state=pending]")).to_have_count(0)
    people["Ada"].counts(2)
    sheet = window.new_page(viewport={"width": 1400, "height": 820})
    shown = SHEET.replace("DESKTOP", _shot(people["Ada"])).replace("PHONE", _shot(people["Grace"]))
    sheet.set_content(shown)
    return sheet.screenshot()


def _shot(person: Visitor) -> str:
    image = person.page.screenshot(animations="disabled", caret="hide")
    return f"data:image/png;base64,{b64encode(image).decode()}"


if __name__ == "__main__":
    main()
