"""The credit audit as a command: which definitions of segments give good credit, without training.

    segcredit audit audit.toml --output runs/audit

What ``[audit]`` may say is in ``settings``; what is measured, in ``credits`` and
``policy_gradients``; which metrics there are, in ``metric_list``; the files, in ``store``; the
order of the work, in ``runner``. The metrics themselves are functions of arrays: ``metrics``.

The public names are resolved when first used (PEP 562), so that importing the metrics loads no
model.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from segcredit.credit_audit.comparison import compare_credits as compare_credits
    from segcredit.credit_audit.credits import Credits as Credits
    from segcredit.credit_audit.finished_audit import Audit as Audit
    from segcredit.credit_audit.finished_audit import failed_units as failed_units
    from segcredit.credit_audit.finished_audit import load_audit as load_audit
    from segcredit.credit_audit.runner import AuditProgress as AuditProgress
    from segcredit.credit_audit.runner import audit as audit
    from segcredit.credit_audit.runner import audit_directory as audit_directory
    from segcredit.credit_audit.settings import AuditConfig as AuditConfig
    from segcredit.credit_audit.settings import load_audit_config as load_audit_config

_HOME_OF = {
    "compare_credits": "comparison",
    "Credits": "credits",
    "Audit": "finished_audit",
    "failed_units": "finished_audit",
    "load_audit": "finished_audit",
    "AuditProgress": "runner",
    "audit": "runner",
    "audit_directory": "runner",
    "AuditConfig": "settings",
    "load_audit_config": "settings",
}

__all__ = sorted(_HOME_OF)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name in _HOME_OF:
        return getattr(importlib.import_module(f"{__name__}.{_HOME_OF[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return list(__all__)
