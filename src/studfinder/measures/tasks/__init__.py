"""Public benchmark tasks, scored by lm-eval with the live (edited) model; documents.py is where they come from."""

from studfinder.measures.tasks.catalogue import TASKS, Availability, Task, availability
from studfinder.measures.tasks.run import headroom_note, tasks

__all__ = [
    "TASKS",
    "Availability",
    "Task",
    "availability",
    "headroom_note",
    "tasks",
]
