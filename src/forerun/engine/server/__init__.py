"""Serving: an engine thread, its asyncio side, and the HTTP interface of OpenAI's API over them."""
