"""The main job: one behavior of one model, from the behavior check to a report that others can verify.

result = cutaway.study(model, task, out="report")
result.verdicts, result.folder
"""

from cutaway.loop.repeat import Repeated, repeat
from cutaway.loop.study import StudyResult, study

__all__ = ["Repeated", "StudyResult", "repeat", "study"]
