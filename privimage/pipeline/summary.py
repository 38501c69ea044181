"""What a run says at its beginning, about its cost, and at its end, about its result."""

from typing import Any

from privimage import evaluate
from privimage.dp import Ledger, Plan
from privimage.evaluate import Evaluation
from privimage.progress import Reporter
from privimage.release import privacy_statement, promise
from privimage.run import results
from privimage.run.context import Run

_MOST_ROWS = 30
_FEW = 10


def describe(run: Run, ledger: Ledger) -> None:
    """Says what is about to happen and what it may cost."""
    say_sets(run, ledger.unit)
    if ledger.plan is None:
        return
    if ledger.not_private_because:
        reasons = "; ".join(ledger.not_private_because)
        run.reporter.say(f"privacy      NOT PRIVATE: {reasons}", style="bold red")
        return
    say_plan(run, ledger.plan, ledger.unit)


def say_sets(run: Run, unit: str) -> None:
    """Says which images are meant, and what of the sensitive ones counts as public."""
    settings, say = run.recipe.data, run.reporter.say
    size = "as declared" if run.declared["public_size_was_declared"] else "treated as public"
    say(f"run folder   {run.folder.path}   (preset {run.recipe.preset}, {run.device})")
    say(f"sensitive    {settings.sensitive}: {len(run.names) or 'no'} labels")
    named = f" ({settings.person})" if settings.person else ""
    say(f"             {run.public_size} {unit}s{named}, a number {size}")
    say(f"public       {settings.public or 'none'}   (selection: {run.recipe.selection.mode})")
    outside = run.recipe.evaluation
    if outside.ceiling or outside.sensitive_duplicates:
        say("             the evaluation looks at them without noise: OUTSIDE ε", style="bold red")
    say(f"test         {settings.test + ', declared public' if settings.test else 'none'}")


def say_plan(run: Run, plan: Plan, unit: str) -> None:
    """Says what may be spent, and on what."""
    run.reporter.say(f"privacy      {plan.in_words(unit)}")
    if (drawn := plan.finetune.sample_rate * run.public_size) < _FEW:
        run.reporter.say(
            f"             a step takes {drawn:.2g} {unit}s on average, too few to be seen in its "
            "noise: raise --set finetune.sample_rate=…"
        )


def conclude(run: Run, ledger: Ledger) -> None:
    """Says what came out: the query's choices, accuracies, ε with its meaning, what to do next."""
    say, folder = run.reporter.say, run.folder
    say()
    _say_choices(run)
    if (found := results.evaluation(folder)) is not None:
        say_evaluation(found, run.reporter)
    say()
    _say_steps(run)
    _say_privacy(run, privacy_statement(ledger))
    say()
    say(f"synthetic images   {folder.release('synthetic')}")
    say(f"a look at them     {folder.stage('evaluation') / 'comparison.png'}")
    say(f"report             {folder.report}")
    say(f"next               privimage ledger verify {folder.path}")


def say_evaluation(found: Evaluation, reporter: Reporter) -> None:
    """Says what was measured, with what belongs beside it."""
    if found.synthetic.accuracy:
        reporter.say(evaluate.accuracy_table(found))
    if found.synthetic.scores:
        reporter.say(evaluate.score_table(found))
    for line in evaluate.sentences(found):
        reporter.say(line)


def _say_choices(run: Run) -> None:
    """Which public classes the query chose for each label, in words."""
    if not run.folder.is_done("selection"):
        return
    facts = results.selection(run.folder)
    if facts.mode == "all" or facts.fell_back:
        run.reporter.say("All public classes were used for pre-training.")
        return
    run.reporter.say("Public classes that the noisy query found most alike:")
    for label, classes in list(facts.chosen.items())[:_MOST_ROWS]:
        run.reporter.say(f"  {label} ← {', '.join(classes)}")


def _say_steps(run: Run) -> None:
    """How many of the planned steps a crash has cost, if it has."""
    planned = run.recipe.finetune.steps
    taken = results.steps_taken(run.folder)
    if taken is not None and taken < planned:
        run.reporter.say(
            f"DP fine-tuning took {taken} of {planned} steps: what a crash cost stays spent."
        )


def _say_privacy(run: Run, statement: dict[str, Any]) -> None:
    """ε with its meaning, or why there is none; then what lies outside it."""
    say = run.reporter.say
    if statement["private"]:
        say(promise(statement))
    else:
        say(f"NOT PRIVATE ({'; '.join(statement['not_private_because'])}): nothing is promised.")
    for what in statement["outside_epsilon"]:
        say(f"Outside ε, computed without noise: {what}.")
