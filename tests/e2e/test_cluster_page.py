"""The pages of the cluster example in a real browser: three nodes, and one of them is killed."""

from __future__ import annotations

from functools import partial
from urllib.parse import urlsplit

from playwright.sync_api import Browser, Page, expect

from examples.cluster.cluster import Cluster
from tests.e2e.browser import Visitor


def watch(used: dict[str, int], name: str, page: Page) -> None:
    """Keep to which port the page of ``name`` connects."""
    page.on("websocket", lambda socket: used.update({name: urlsplit(socket.url).port or 0}))


def test_the_pages_of_a_killed_node_move_to_another(window: Browser) -> None:
    with Cluster() as cluster:
        cluster.meet()
        used: dict[str, int] = {}
        visitors = []
        for node in cluster.nodes:
            context = window.new_context()
            context.on("page", partial(watch, used, node.name))
            visitors.append(Visitor(context, node.page, "talk", node.name))

        def all_see(visitor: Visitor, text: str) -> None:
            visitor.says(text)
            for each in visitors:
                each.sees(text)

        for visitor in visitors:
            all_see(visitor, f"hello from the page of {visitor.name}")
        before = dict(used)
        victim = next(node for node in cluster.nodes if node.ws in before.values())
        victim.kill()
        for visitor in visitors:
            if before[visitor.name] == victim.ws:
                expect(visitor.page.get_by_text("Back online.")).to_be_visible()
        for visitor in visitors:
            visitor.is_("open")
            all_see(visitor, f"still here: {visitor.name}")
        assert victim.ws not in used.values()
        for visitor in visitors:
            visitor.close()
