"""Whose requests find a place among the threads of answers."""

import asyncio
import threading

import pytest

from app.api.http.bridge import Bridge
from app.errors import BusyError


def test_a_tenant_has_half_of_the_places_at_most_and_gets_them_back() -> None:
    async def use() -> None:
        bridge, go_on = Bridge(4), threading.Event()

        def work() -> bool:
            return go_on.wait(60)

        begun = [asyncio.create_task(bridge.search("loud", work)) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(BusyError, match="of yours"):
            await bridge.search("loud", work)
        begun += [asyncio.create_task(bridge.search(name, work)) for name in ("calm", "quiet")]
        await asyncio.sleep(0)
        with pytest.raises(BusyError, match="too many requests are"):
            await bridge.search("late", work)
        go_on.set()
        assert await asyncio.gather(*begun) == [True] * 4
        assert await bridge.search("loud", work)
        bridge.close()

    asyncio.run(use())
