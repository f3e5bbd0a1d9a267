"""What belongs to one simulated process, and the points at which it can be killed."""

from __future__ import annotations

__all__ = ["Killed", "Scope", "holds", "install"]

import asyncio
from collections.abc import Callable, Coroutine
from contextvars import Context, ContextVar, copy_context
from typing import Any

from attrs import define, field

_SCOPE: ContextVar[Scope | None] = ContextVar("scope", default=None)
_TURNS_MAX = 1_000


class Killed(BaseException):
    """The process is killed. Not an Exception, because no code of the process may catch it."""


def _new_context() -> Context:
    return copy_context()


@define(eq=False)
class Scope:
    """
    One process: its tasks, and whether it was killed.

    A kill ends the process at a point: before or after a step with an effect outside its memory. From then on none of its
    tasks passes a point, so none has an effect.
    """

    name: str
    on_kill: Callable[[str], None]
    """Called with the name of the point at which the process is killed."""
    on_pause: Callable[[], None] = lambda: None
    is_killed: bool = False
    is_stopped: bool = False
    """It has ended by itself when it was stopped; then it counts as killed, too."""
    starting: asyncio.Task[Any] | None = None
    """The task that starts the process."""
    is_paused: bool = False
    """The process is stopped: its callbacks wait in *held*."""
    held: list[asyncio.Handle] = field(factory=list)
    left: int | None = None
    """The process is killed, or stopped with *stops*, after so many more points; None if it is not."""
    stops: bool = False
    counted: str = ""
    """Only points with this in their names count for *left*."""
    ended: asyncio.Event = field(factory=asyncio.Event)
    _tasks: dict[asyncio.Task[Any], None] = field(factory=dict)
    _context: Context = field(factory=_new_context)

    def __attrs_post_init__(self) -> None:
        self._context.run(_SCOPE.set, self)

    def run(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Start a task of the process; what that starts belongs to the process, too."""
        return asyncio.get_running_loop().create_task(work, context=self._context.copy())

    def call(self, call: Callable[..., Any], *args: Any) -> None:
        """Call *call*; the tasks that it starts belong to the process."""
        self._context.copy().run(call, *args)

    def add(self, task: asyncio.Task[Any]) -> None:
        """Note that *task* belongs to the process."""
        self._tasks[task] = None
        task.add_done_callback(lambda task: self._tasks.pop(task, None))

    @property
    def tasks(self) -> int:
        """How many tasks of the process have not ended."""
        return len(self._tasks)

    def point(self, name: str) -> None:
        """
        Pass one point.

        Raises:
            Killed: The process is killed here, or was killed before.
        """
        if self.is_killed:
            raise Killed
        self.pass_within(name)
        if self.is_killed:
            raise Killed

    def pass_within(self, name: str) -> None:
        """Pass a point within a step that is made to its end; one that was killed here is killed at the next point at the latest."""
        if self.left is not None and self.counted in name and not self.is_killed:
            self.left -= 1
            if self.left < 0 and self.stops:
                self.pause()
            elif self.left < 0:
                self.kill(name)

    def pause(self) -> None:
        """Stop the process, as SIGSTOP does: nothing of it runs until `resume`."""
        if not self.is_killed:
            self.left, self.is_paused = None, True
            self.on_pause()

    def resume(self) -> None:
        """Let it run again: what has waited runs first, in its order."""
        self.is_paused = False
        loop: Any = asyncio.get_running_loop()
        held, self.held = self.held, []
        loop._ready.extend(held)

    def kill(self, name: str) -> None:
        """Kill the process; call `clean_up` before anything takes its place."""
        if not self.is_killed:
            self.is_killed = True
            if self.starting is not None:  # what it waits for may never come
                self.starting.cancel()
            self.resume()
            self.on_kill(name)
            self.ended.set()

    async def clean_up(self) -> None:
        """End all tasks of the killed process, which have no effect any more."""
        for task in list(self._tasks):
            task.cancel()
        for _ in range(_TURNS_MAX):
            if not self._tasks:
                return
            await asyncio.sleep(0)
            for task in list(self._tasks):  # one that has just been started
                task.cancel()
        raise AssertionError(f"{self.name} is killed, and {len(self._tasks)} of its tasks do not end")


def holds(handle: Any) -> bool:
    """Keep *handle*, which is about to run, if its process is stopped; return whether that is so."""
    scope = handle._context.get(_SCOPE)
    if scope is None or not scope.is_paused:
        return False
    scope.held.append(handle)
    return True


def install(loop: asyncio.AbstractEventLoop) -> None:
    """Let each task that *loop* runs belong to the process whose task has started it."""
    loop.set_task_factory(_make_task)


def _make_task(loop: asyncio.AbstractEventLoop, work: Any, **options: Any) -> asyncio.Task[Any]:
    context = options.get("context")
    scope = _SCOPE.get() if context is None else context.get(_SCOPE)
    task: asyncio.Task[Any] = asyncio.Task(work, loop=loop, **options)
    if scope is not None:
        scope.add(task)
    return task
