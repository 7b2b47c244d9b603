"""A claim of your own: register it with its smallest effect, run it on pairs that nothing was tuned on.

python examples/own_claim.py
"""

import tempfile
from pathlib import Path

import cutaway
from cutaway import Claim, Ledger, Necessary, Sufficient

model = cutaway.load("induction-2l")
task = cutaway.tasks.get("induction", model)
(induction,), (partner,) = (cutaway.zoo.truth("induction-2l").heads(role) for role in ("induction", "previous_token"))
decoy = "z.1.h2"

claims = [
    Claim(
        f"{induction} carries induction.",
        subject=(induction,),
        task="induction",
        predictions=(Necessary(at_least=0.2), Sufficient(at_least=0.5)),
        exclude=(partner,),  # it is known to take part, so it is no control
    ),
    Claim(
        f"{decoy} looks at the right token, so it carries induction.",
        subject=(decoy,),
        task="induction",
        predictions=(Necessary(at_least=0.2),),
    ),
]
with tempfile.TemporaryDirectory() as folder:
    ledger = Ledger(Path(folder) / "ledger.sqlite")
    frozen = [claim.freeze(model, task, search=8, ledger=ledger) for claim in claims]
    for claim, plan in zip(claims, frozen):
        result = plan.run(model, task, ledger)
        print(f"{result.verdict:<12} {claim.sentence}\n{'':<12} {result.reason}")
