"""Dead letters: stored, shown in groups, replayed as they are or edited, discarded, archived."""

__all__ = ["ERRORS", "DeadLetterGroup", "DeadLetterLine", "DeadLetterStore", "NotReplayable", "StoredDeadLetter", "WaitsForDeadLetter"]

from app.messaging.dead_letters.groups import DeadLetterGroup
from app.messaging.dead_letters.line import DeadLetterLine, WaitsForDeadLetter
from app.messaging.dead_letters.rows import StoredDeadLetter
from app.messaging.dead_letters.store import ERRORS, DeadLetterStore, NotReplayable
