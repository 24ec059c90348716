"""The messages between the gateway and its workers."""

from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from gateway.worker import pack, read

messages = st.recursive(
    st.none() | st.integers() | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner),
)


@given(st.lists(messages), st.integers(1, 50))
def test_messages_arrive_whole_and_in_order_however_they_are_cut(
    sent: list[object], size: int
) -> None:
    async def scenario() -> list[object]:
        stream = asyncio.StreamReader()
        data = b"".join(map(pack, sent))
        for at in range(0, len(data), size):
            stream.feed_data(data[at : at + size])
        stream.feed_eof()
        received = [await read(stream) for _ in sent]
        assert stream.at_eof()
        return received

    assert asyncio.run(scenario()) == sent
