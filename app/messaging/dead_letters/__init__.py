"""Dead letters: stored, shown in groups, replayed as they are or edited, discarded, archived."""

__all__ = ["ERRORS", "DeadLetterGroup", "DeadLetterStore", "NotReplayable", "StoredDeadLetter"]

from app.messaging.dead_letters.groups import DeadLetterGroup
from app.messaging.dead_letters.rows import StoredDeadLetter
from app.messaging.dead_letters.store import ERRORS, DeadLetterStore, NotReplayable
