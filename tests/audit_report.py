"""Print how good the audit is: planted bugs found, false alarms on correct models, seconds each.

    python tests/audit_report.py          the proof, as the tests hold it
    python tests/audit_report.py --all    after it, every text architecture of `transformers`; takes long

A finding in a released model is no false alarm without a look: it is printed, with the version.
"""

import signal
import sys
import time
import warnings
from collections.abc import Callable
from statistics import median

import torch
from correct_models import CORRECT
from tiny_transformers import build, model_classes
from tqdm.auto import tqdm

from utils.audit import Report, audit
from utils.audit.gallery import PLANTED

LENGTHS = (1, 2, 5, 12, 17)
SECONDS_EACH = 30  # for one architecture


def timed(run: Callable[[], Report]) -> tuple[Report, float]:
    """The report and the seconds it took."""
    torch.manual_seed(0)
    start = time.perf_counter()
    return run(), time.perf_counter() - start


def say_seconds(seconds: list[float]) -> None:
    """Median and maximum."""
    print(f"  seconds each: median {median(seconds):.1f}, most {max(seconds):.1f}")


def planted() -> None:
    """Found of planted, by the right rule."""
    results = [(bug, *timed(bug.audit)) for bug in tqdm(PLANTED, desc="planted bugs", leave=False)]
    missed = [bug.name for bug, report, _ in results if not report.rules & bug.rules]
    print(f"planted bugs found: {len(results) - len(missed)} of {len(results)}", *missed, sep="\n  missed: ")
    say_seconds([seconds for *_, seconds in results])


def correct() -> None:
    """False alarms on our own models and PyTorch's."""
    results = [(name, *timed(run)) for name, run in tqdm(CORRECT.items(), desc="correct models", leave=False)]
    alarms = [f"{name}: {sorted(report.rules)}" for name, report, _ in results if report]
    print(f"false alarms: {len(alarms)} of {len(results)} correct models", *alarms, sep="\n  ")
    say_seconds([seconds for *_, seconds in results])


def transformers_models(every: bool) -> None:
    """Findings in released architectures: those that the tests hold, or every one, and which ones were left out."""
    import transformers
    from test_audit_transformers import BUGS, KNOWN, SILENT

    transformers.logging.set_verbosity_error()
    chosen = {(kind, name) for kind, names in SILENT.items() for name in names}
    models = [one for one in model_classes() if every or one[:2] in chosen]
    seconds, findings, left_out = [], [], []
    for kind, name, model_class in tqdm(models, desc="transformers", leave=False):
        for attention in ("eager", "sdpa"):
            try:
                signal.alarm(SECONDS_EACH)
                model = build(kind, model_class, attention)
                report, needed = timed(lambda model=model, kind=kind: audit(model, kind=kind, lengths=LENGTHS))
            except Exception as error:  # a tiny config that does not fit is no finding
                left_out.append(f"{name} ({attention}): {type(error).__name__}: {str(error).strip()[:80]}")
                continue
            finally:
                signal.alarm(0)
            seconds.append(needed)
            findings += [f"{name} ({attention}): {one.rule}, {one.where}" for one in report if name not in KNOWN | BUGS]
    print(
        f"transformers {transformers.__version__}: {len(findings)} findings in {len(seconds)} models",
        *findings,
        sep="\n  ",
    )
    say_seconds(seconds)
    print(f"  explained in test_audit_transformers.py: {len(KNOWN)} architectures; true bugs: {', '.join(BUGS)}")
    if left_out:
        print(f"  not built, or stopped: {len(left_out)}", *left_out, sep="\n    ")


def stop(*_: object) -> None:
    """Give up on one architecture."""
    raise TimeoutError(f"more than {SECONDS_EACH} s")


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    signal.signal(signal.SIGALRM, stop)
    planted()
    correct()
    transformers_models(every="--all" in sys.argv[1:])
