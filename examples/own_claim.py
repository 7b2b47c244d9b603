"""A claim of your own: register it with its smallest effect, run it on pairs that nothing was tuned on, read the verdict.

python examples/own_claim.py
"""

import tempfile
from pathlib import Path

import cutaway
from cutaway import Claim, Ledger, Necessary, Sufficient

model = cutaway.load("induction-2l")
task = cutaway.tasks.get("induction", model)
induction, decoy = cutaway.zoo.truth("induction-2l").heads("induction")[0], "z.1.h2"

claims = [
    Claim(
        f"{induction} carries induction.",
        (induction,),
        "induction",
        (Necessary(at_least=0.2), Sufficient(at_least=0.5)),
    ),
    Claim(
        f"{decoy} looks at the right token, so it carries induction.", (decoy,), "induction", (Necessary(at_least=0.2),)
    ),
]
with tempfile.TemporaryDirectory() as folder:
    ledger = Ledger(Path(folder) / "ledger.sqlite")
    frozen = [claim.freeze(model, task, search=8, ledger=ledger) for claim in claims]
    for claim, plan in zip(claims, frozen):
        result = plan.run(model, task, ledger)
        print(f"{result.verdict:<12} {claim.sentence}\n{'':<12} {result.reason}")
