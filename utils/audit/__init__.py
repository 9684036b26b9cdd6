"""The mask audit: finds mask bugs in any callable model, by what goes in and what comes out.

A mask is a promise: this output does not depend on that token. The audit tests the promise. It changes a token and
looks which outputs move, pads and looks whether anything moves, asks for gradients, runs every mode. It never looks
inside, so it works on any model.

    bench.py    runs the model: views, modes, random tokens, the noise
    probes.py   one question each
    audits.py   which probes for which model
    report.py   what is said about it
    drawing.py  expected against measured, drawn
    hugging_face.py  the forward of a Hugging Face model, written for it
    lint.py     a bare mask, without a model
    gallery.py  planted bugs (import it by itself)
"""

from utils.audit.audits import audit_decoder, audit_encoder, audit_seq2seq
from utils.audit.drawing import plot_findings
from utils.audit.hugging_face import audit
from utils.audit.lint import lint_mask
from utils.audit.report import Finding, Report

__all__ = [
    "Finding",
    "Report",
    "audit",
    "audit_decoder",
    "audit_encoder",
    "audit_seq2seq",
    "lint_mask",
    "plot_findings",
]
