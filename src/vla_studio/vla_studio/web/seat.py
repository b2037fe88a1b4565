"""The operator's seat: one page at a time has it, and everybody sees which."""

from __future__ import annotations

from typing import Generic, TypeVar

from vla_inference.errors import VlaError

Page = TypeVar("Page")


class Seat(Generic[Page]):
    """holder: who operates. asking: who would like to, and waits for the holder to agree."""

    def __init__(self) -> None:
        self.holder: Page | None = None
        self.asking: Page | None = None

    def take(self, page: Page) -> bool:
        """Takes a free seat, or asks the holder for it; returns whether `page` has it now."""
        if self.holder is None:
            self.holder = page
        elif self.holder is not page:
            self.asking = page
        return self.holder is page

    def leave(self, page: Page) -> None:
        """`page` no longer has the seat, nor asks for it."""
        if self.asking is page:
            self.asking = None
        if self.holder is page:
            self.holder = None

    def hand_over(self, page: Page) -> None:
        """The holder lets the one who asked have the seat."""
        self.check(page)
        if self.asking is None:
            raise VlaError("nobody asks for control", "leave it instead")
        self.holder, self.asking = self.asking, None

    def refuse(self, page: Page) -> None:
        """The holder keeps the seat."""
        self.check(page)
        self.asking = None

    def check(self, page: Page) -> None:
        """Raises VlaError if `page` does not have the seat."""
        if self.holder is not page:
            raise VlaError("this page only watches", "take control first")
